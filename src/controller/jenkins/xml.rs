//! A node's `config.xml`: two texts of it are changed, and every other byte stays as Jenkins and its plugins wrote it.
//!
//! It is XML 1.1, which libraries refuse, and what a class of a plugin wrote there is none of ours. So there is no tree here: the children of
//! the root are found by where they begin and end.

use std::ops::Range;

/// A `config.xml`, and where the root's children are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    text: String,
    children: Vec<Child>,
    /// Where the root's end tag is.
    end: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Child {
    name: String,
    whole: Range<usize>,
    inner: Range<usize>,
}

impl Document {
    /// Finds the children of the root; none if the root is another than `root`, or it is not XML as Jenkins writes it.
    pub(super) fn parse(text: &str, root: &str) -> Option<Self> {
        let mut reader = Reader { text, at: 0 };
        let (mut children, mut open): (Vec<Child>, Vec<(&str, usize, usize)>) = (Vec::new(), Vec::new());
        loop {
            let (begin, piece) = reader.next()?;
            match piece {
                Piece::Other => {}
                // An entity that is defined there could stand for anything.
                Piece::Declaration => return None,
                Piece::Open { name, is_empty } => {
                    match open.len() {
                        0 if name != root || is_empty => return None,
                        1 if is_empty => children.push(Child { name: name.into(), whole: begin..reader.at, inner: reader.at..reader.at }),
                        _ => {}
                    }
                    if !is_empty {
                        open.push((name, begin, reader.at));
                    }
                }
                Piece::Close { name } => {
                    let (opened, from, inner) = open.pop()?;
                    if opened != name {
                        return None;
                    }
                    match open.len() {
                        0 => return Some(Self { text: text.into(), children, end: begin }),
                        1 => children.push(Child { name: name.into(), whole: from..reader.at, inner: inner..begin }),
                        _ => {}
                    }
                }
            }
            if open.len() > DEPTH_MAX {
                return None;
            }
        }
    }

    /// The text of a child of the root; none if there is none, or several, or it holds more than text.
    pub(super) fn text_of(&self, name: &str) -> Option<String> {
        let child = self.only(name)?;
        let inner = self.text.get(child.inner.clone())?;
        if inner.contains('<') { None } else { unescape(inner) }
    }

    /// Sets the text of a child of the root, or adds the child; none if there are several of that name. `value` holds nothing that XML
    /// would read as something else.
    pub(super) fn set(&self, name: &str, value: &str) -> Option<String> {
        let mut text = self.text.clone();
        let count = self.children.iter().filter(|child| child.name == name).count();
        let place = match (count, self.only(name)) {
            (1, Some(child)) => child.whole.clone(),
            (0, _) => self.end..self.end,
            _ => return None,
        };
        let is_plain = !value.contains(['<', '>', '&', '"', '\'']) && !value.contains(char::is_control);
        if !is_plain {
            return None;
        }
        text.replace_range(place, &format!("<{name}>{value}</{name}>"));
        Some(text)
    }

    fn only(&self, name: &str) -> Option<&Child> {
        let mut found = self.children.iter().filter(|child| child.name == name);
        found.next().filter(|_| found.next().is_none())
    }
}

/// How deep elements may be in each other.
const DEPTH_MAX: usize = 256;

enum Piece<'a> {
    Open { name: &'a str, is_empty: bool },
    Close { name: &'a str },
    Declaration,
    Other,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next piece within angle brackets, and where it begins.
    fn next(&mut self) -> Option<(usize, Piece<'a>)> {
        let begin = self.at + self.text.get(self.at..)?.find('<')?;
        let rest = self.text.get(begin..)?;
        let (bytes, piece) = if rest.starts_with("<!--") {
            (rest.find("-->")? + 3, Piece::Other)
        } else if rest.starts_with("<![CDATA[") {
            (rest.find("]]>")? + 3, Piece::Other)
        } else if rest.starts_with("<?") {
            (rest.find("?>")? + 2, Piece::Other)
        } else if rest.starts_with("<!") {
            (2, Piece::Declaration)
        } else if let Some(after) = rest.strip_prefix("</") {
            let end = after.find('>')?;
            (end + 3, Piece::Close { name: after.get(..end)?.trim_end() })
        } else {
            let end = end_of_tag(rest)?;
            let inner = rest.get(1..end)?;
            let is_empty = inner.ends_with('/');
            let name = inner.split(|letter: char| letter.is_whitespace() || letter == '/').next()?;
            if name.is_empty() {
                return None;
            }
            (end + 1, Piece::Open { name, is_empty })
        };
        self.at = begin + bytes;
        Some((begin, piece))
    }
}

/// Where a tag's `>` is: not one that is in quotes.
fn end_of_tag(tag: &str) -> Option<usize> {
    let mut quote = None;
    tag.char_indices().find_map(|(at, letter)| {
        match (quote, letter) {
            (None, '>') => return Some(at),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            _ => {}
        }
        None
    })
}

/// A text with its entities as letters; none if one is not known.
pub(super) fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let (entity, after) = after.split_once(';')?;
        out.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            entity => {
                let number = entity.strip_prefix('#')?;
                let number = number.strip_prefix('x').map_or_else(|| number.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok())?;
                char::from_u32(number)?
            }
        });
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "<?xml version=\"1.1\" encoding=\"UTF-8\"?>\n<slave plugin=\"a>b\">\n  <name>n1</name>\n  <description>a &amp; b</description>\n  \
        <numExecutors>2</numExecutors>\n  <launcher class=\"x\"><label>inner</label><!-- <label>no</label> --></launcher>\n  <label>a b</label>\n  \
        <nodeProperties/>\n</slave>";

    #[test]
    fn the_texts_of_the_roots_children_are_found_and_no_others() {
        let document = Document::parse(NODE, "slave").unwrap();
        let text = |name| document.text_of(name);
        assert_eq!(
            (text("name").as_deref(), text("label").as_deref(), text("numExecutors").as_deref()),
            (Some("n1"), Some("a b"), Some("2"))
        );
        assert_eq!((text("description").as_deref(), text("nodeProperties").as_deref()), (Some("a & b"), Some("")));
        assert_eq!((text("launcher"), text("none")), (None, None));
    }

    #[test]
    fn a_text_is_changed_and_every_other_byte_stays() {
        let document = Document::parse(NODE, "slave").unwrap();
        assert_eq!(document.set("label", "c d").unwrap(), NODE.replace("<label>a b</label>", "<label>c d</label>"));
        assert_eq!(document.set("nodeProperties", "x").unwrap(), NODE.replace("<nodeProperties/>", "<nodeProperties>x</nodeProperties>"));
        assert_eq!(document.set("new", "x").unwrap(), NODE.replace("</slave>", "<new>x</new></slave>"));
        assert_eq!(document.set("label", "a<b"), None);
        let twice = NODE.replace("<nodeProperties/>", "<name>n2</name>");
        let twice = Document::parse(&twice, "slave").unwrap();
        assert_eq!((twice.text_of("name"), twice.set("name", "x")), (None, None));
    }

    #[test]
    fn what_is_not_as_jenkins_writes_it_is_not_read() {
        for bad in [
            "",
            "<slave/>",
            "<project></project>",
            "<slave>",
            "<slave><a></b></slave>",
            "<slave",
            "text",
            "<slave></slave",
            "<!DOCTYPE slave [<!ENTITY n \"n1\">]><slave><name>&n;</name></slave>",
            "<slave><></></slave>",
            "</slave>",
            &format!("<slave>{}", "<a>".repeat(100_000)),
        ] {
            assert_eq!(Document::parse(bad, "slave"), None, "{}", bad.chars().take(60).collect::<String>());
        }
        let unknown = Document::parse("<slave><name>&n;</name></slave>", "slave").unwrap();
        assert_eq!(unknown.text_of("name"), None);
    }
}
