//! A reader of server-sent events, as the HTML standard lays them down.

use std::collections::VecDeque;

use crate::limits::EVENT_BYTES_MAX;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its kind; `message` if it has none.
    pub(crate) kind: String,
    /// Its data, lines joined.
    pub(crate) data: String,
    /// The last id that was given, by this event or one before.
    pub(crate) id: Option<String>,
}

/// An event is larger than any should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct EventTooLarge;

/// The events of one stream. Bytes go in as they come, cut anywhere; events come out.
#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    after_return: bool,
    kind: String,
    data: String,
    has_data: bool,
    id: Option<String>,
    ready: VecDeque<Event>,
}

impl Events {
    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), EventTooLarge> {
        for byte in bytes {
            let second_of_two = self.after_return && *byte == b'\n';
            self.after_return = *byte == b'\r';
            match byte {
                _ if second_of_two => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.take(&String::from_utf8_lossy(&line));
                }
                _ => self.line.push(*byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(EventTooLarge);
            }
        }
        Ok(())
    }

    /// The next event that is whole.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn take(&mut self, line: &str) {
        if line.is_empty() {
            return self.end();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.kind = value.into(),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.id = Some(value.into()),
            // A comment, which keeps the connection open, `retry`, or what a later server may add.
            _ => {}
        }
    }

    fn end(&mut self) {
        let kind = std::mem::take(&mut self.kind);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let kind = if kind.is_empty() { "message".into() } else { kind };
            self.ready.push_back(Event { kind, data, id: self.id.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str, id: Option<&str>) -> Event {
        Event { kind: kind.into(), data: data.into(), id: id.map(Into::into) }
    }

    fn all(pieces: &[&[u8]]) -> Vec<Event> {
        let mut events = Events::default();
        for piece in pieces {
            events.feed(piece).unwrap();
        }
        std::iter::from_fn(|| events.next()).collect()
    }

    #[test]
    fn an_event_is_read_wherever_the_stream_is_cut() {
        let text = ": hello\n\nid: 7\nevent: line\ndata: {\"a\":\ndata: 1}\n\nevent: end\ndata: provisioned\n\ndata: half".as_bytes();
        let expected = [event("line", "{\"a\":\n1}", Some("7")), event("end", "provisioned", Some("7"))];
        assert_eq!(all(&[text]), expected);
        for at in 0..text.len() {
            assert_eq!(all(&[&text[..at], &text[at..]]), expected, "cut at {at}");
        }
    }

    #[test]
    fn every_kind_of_line_end_is_one() {
        let expected = [event("message", "a", None), event("message", "", None)];
        assert_eq!(all(&[b"data:a\n\ndata\n\n"]), expected);
        assert_eq!(all(&[b"data:a\r\n\r\ndata\r\n\r\n"]), expected);
        assert_eq!(all(&[b"data:a\r\rdata\r\r"]), expected);
        assert_eq!(all(&[b"event: nothing\n\nretry: 3\n\n"]), []);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(events.feed(&piece), Ok(()));
        assert_eq!(events.feed(b"x"), Err(EventTooLarge));
        let mut events = Events::default();
        assert!((0..).map(|_| events.feed(b"data: 0123456789\n")).any(|fed| fed.is_err()));
    }
}
