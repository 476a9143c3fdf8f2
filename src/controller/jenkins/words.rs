//! What Jenkins says, made fit to be shown: a header or the beginning of a page becomes one short line of text.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use crate::limits::CONTROLLER_WORDS_CHARS_MAX;

/// A controller's own words for an answer that is an error: its `X-Error`, else what its page begins with, else the status alone.
pub(super) fn words(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    // Headers are in Latin-1, whatever the letters are.
    let header = headers.get("x-error").map(|value| value.as_bytes().iter().map(|byte| char::from(*byte)).collect::<String>());
    let told = header.map(|text| clean(&text)).filter(|text| !text.is_empty());
    let told = told.unwrap_or_else(|| page(&String::from_utf8_lossy(body)));
    if told.is_empty() { status.to_string() } else { told }
}

/// A text from elsewhere on one line: without control characters and what turns the direction of writing, and cut.
pub(crate) fn clean(text: &str) -> String {
    let shown = |letter: char| match letter {
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        letter if letter.is_control() => ' ',
        letter => letter,
    };
    let shown: String = text.chars().map(shown).collect();
    let mut line = String::new();
    for word in shown.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.char_indices().nth(CONTROLLER_WORDS_CHARS_MAX) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

/// The title of a page, and the text that it begins with. Of a page that was cut, what is not whole is left out.
fn page(html: &str) -> String {
    let title = between(html, "<title", "</title>").and_then(|title| title.split_once('>')).map(|(_, title)| clean(&unescape(title)));
    let title = title.unwrap_or_default();
    let (_, after) = html.split_once("</title>").unwrap_or(("", html));
    let text = clean(&unescape(&visible(after)));
    match (title.is_empty(), text.is_empty()) {
        (true, _) => text,
        (false, true) => title,
        (false, false) if text.starts_with(title.as_str()) => text,
        (false, false) => clean(&format!("{title}: {text}")),
    }
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    Some(rest.split_once(end)?.0)
}

/// The text of a page without its tags, scripts, styles and comments.
fn visible(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let end = ["script", "style"].into_iter().find(|name| tag.starts_with(name)).map(|name| format!("</{name}>"));
        let end = end.unwrap_or_else(|| if tag.starts_with("!--") { "-->".into() } else { ">".into() });
        match tag.split_once(end.as_str()) {
            Some((_, after)) => rest = after,
            None => return text,
        }
    }
    text.push_str(rest);
    text
}

/// A text with the entities that Jenkins and its servlet container write.
fn unescape(text: &str) -> String {
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&#039;", "'"), ("&apos;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    entities.into_iter().fold(text.to_owned(), |text, (entity, letter)| text.replace(entity, letter))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn told(header: Option<&[u8]>, body: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("x-error", HeaderValue::from_bytes(value).unwrap());
        }
        words(StatusCode::BAD_REQUEST, &headers, body.as_bytes())
    }

    #[test]
    fn the_header_counts_for_more_than_the_page() {
        assert_eq!(told(Some(b"Agent called  n1  already exists"), "<title>Error</title>"), "Agent called n1 already exists");
        assert_eq!(
            told(Some("L'agent existe d\u{e9}j\u{e0}".chars().map(|letter| letter as u8).collect::<Vec<_>>().as_slice()), ""),
            "L'agent existe déjà"
        );
        assert_eq!(told(Some(b"  "), "<title>Error</title>"), "Error");
    }

    #[test]
    fn a_page_is_told_by_its_title_and_first_text() {
        let jetty = "<html><head><title>Error 403 No valid crumb</title></head><body><h2>HTTP ERROR 403</h2><table></table></body></html>";
        assert_eq!(told(None, jetty), "Error 403 No valid crumb: HTTP ERROR 403");
        let cut =
            "<title>Jenkins [Jenkins]</title><script>var a = '<b>';</script><style>p{}</style><!-- x --><h1>Oops!</h1><p>A &lt;b&gt; &amp;";
        assert_eq!(told(None, &format!("{cut}<p title=\"cut of")), "Jenkins [Jenkins]: Oops! A <b> &");
        assert_eq!(told(None, ""), "400 Bad Request");
        assert_eq!(told(None, "upstream timed out"), "upstream timed out");
    }

    #[test]
    fn words_are_one_line_that_is_cut_and_moves_no_cursor() {
        assert_eq!(clean("a\u{1b}[2J\r\n\tb\u{202e}c\0"), "a [2J b c");
        let long = clean(&"é".repeat(1000));
        assert_eq!(long.chars().count(), CONTROLLER_WORDS_CHARS_MAX + 1);
        assert_eq!(clean(&long).chars().count(), CONTROLLER_WORDS_CHARS_MAX + 1);
    }
}
