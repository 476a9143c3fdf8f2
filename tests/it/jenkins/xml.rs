//! As much XML as a `config.xml` has, 1.0 or 1.1.

/// An element. Text between its children is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) children: Vec<Element>,
    pub(super) text: String,
}

impl Element {
    /// Parses a document; none if it is not well-formed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text.trim_start_matches('\u{feff}') };
        reader.skip_misc()?;
        let root = reader.element()?;
        reader.skip_misc()?;
        reader.rest.is_empty().then_some(root)
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        Some(self.attributes.iter().find(|(key, _)| key == name)?.1.as_str())
    }

    /// The text of a child; empty if there is none.
    pub(super) fn text_of(&self, name: &str) -> &str {
        self.child(name).map_or("", |child| child.text.as_str())
    }
}

/// Writes text as `XStream` does.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\t' => out.push(letter),
            letter if letter.is_control() => out.push_str(&format!("&#x{:x};", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn eat(&mut self, what: &str) -> bool {
        let rest = self.rest.strip_prefix(what);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn until(&mut self, end: &str) -> Option<&'a str> {
        let (found, rest) = self.rest.split_once(end)?;
        self.rest = rest;
        Some(found)
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Skips what may be around the root: the declaration, comments, a document type without an inner part.
    fn skip_misc(&mut self) -> Option<()> {
        loop {
            self.skip_space();
            if self.eat("<?") {
                self.until("?>")?;
            } else if self.eat("<!--") {
                self.until("-->")?;
            } else if self.eat("<!DOCTYPE") {
                self.until(">")?;
            } else {
                return Some(());
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let end = self.rest.find(|letter: char| !(letter.is_alphanumeric() || "._-:$".contains(letter)))?;
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn element(&mut self) -> Option<Element> {
        if !self.eat("<") {
            return None;
        }
        let mut element = Element { name: self.name()?, ..Element::default() };
        loop {
            self.skip_space();
            if self.eat("/>") {
                return Some(element);
            }
            if self.eat(">") {
                break;
            }
            let key = self.name()?;
            self.skip_space();
            if !self.eat("=") {
                return None;
            }
            self.skip_space();
            let quote = if self.eat("\"") { "\"" } else { self.eat("'").then_some("'")? };
            let value = unescape(self.until(quote)?)?;
            element.attributes.push((key, value));
        }
        loop {
            let end = self.rest.find('<')?;
            let (text, rest) = self.rest.split_at(end);
            element.text.push_str(&unescape(text)?);
            self.rest = rest;
            if self.eat("<!--") {
                self.until("-->")?;
            } else if self.eat("<![CDATA[") {
                element.text.push_str(self.until("]]>")?);
            } else if self.eat("<?") {
                self.until("?>")?;
            } else if self.eat("</") {
                let name = self.name()?;
                self.skip_space();
                return (self.eat(">") && name == element.name).then_some(element);
            } else {
                element.children.push(self.element()?);
            }
        }
    }
}

fn unescape(text: &str) -> Option<String> {
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
                let number = number.strip_prefix('x').map_or_else(|| number.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())?;
                char::from_u32(number)?
            }
        });
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}
