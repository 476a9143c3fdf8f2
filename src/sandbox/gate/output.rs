//! A command's output on its way to the log, line by line as it comes.

use crate::journal::{Level, Recorder};
use crate::limits::{LOG_LINE_BYTES_MAX, SECRET_BYTES_MAX};
use crate::machine::Stream;
use crate::sandbox::gate::redact::Redactor;

/// Copies a command's output to the log, up to a number of lines. Of a line that is too long, the beginning is copied.
pub(super) struct OutputLog {
    recorder: Recorder,
    redactor: Redactor,
    lines: u32,
    lines_max: u32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl OutputLog {
    pub(super) fn new(recorder: Recorder, redactor: Redactor, lines_max: u32) -> Self {
        Self { recorder, redactor, lines: 0, lines_max, stdout: Vec::new(), stderr: Vec::new() }
    }

    pub(super) fn feed(&mut self, stream: Stream, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.lines == self.lines_max {
                return;
            }
            // What is cut from a line goes before secrets are looked for, so that more is kept than is shown.
            let room = LOG_LINE_BYTES_MAX + SECRET_BYTES_MAX;
            let partial = self.partial(stream);
            partial.extend(piece.iter().take(room.saturating_sub(partial.len())));
            if piece.ends_with(b"\n") {
                let line = std::mem::take(partial);
                let text = self.redactor.line(String::from_utf8_lossy(&line).trim_end());
                self.line(stream, text);
            }
        }
    }

    /// Copies a line that was copied before, and is played back.
    pub(super) fn again(&mut self, stream: Stream, text: &str) {
        self.line(stream, text.to_owned());
    }

    /// Copies what has no end of line, and says how many lines there were. What was `cut_off` may end in the middle of a secret.
    pub(super) fn finish(mut self, cut_off: bool) -> u32 {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(self.partial(stream));
            if !rest.is_empty() {
                let rest = String::from_utf8_lossy(&rest);
                let text = if cut_off { self.redactor.cut_off_line(&rest) } else { self.redactor.line(rest.trim_end()) };
                self.line(stream, text);
            }
        }
        self.lines
    }

    fn partial(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn line(&mut self, stream: Stream, text: String) {
        if self.lines == self.lines_max {
            return;
        }
        self.lines += 1;
        let level = match stream {
            Stream::Stdout => Level::Stdout,
            Stream::Stderr => Level::Stderr,
        };
        self.recorder.line(level, text);
        if self.lines == self.lines_max {
            self.recorder.line(Level::Warn, "more output is not copied to the log".into());
        }
    }
}
