//! What the tools print: tables on a terminal, tab-separated lines into a pipe, JSON where it is asked for.
//!
//! What comes from the server was written by agents and modules in part, so that nothing of it reaches a terminal as a control character.

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write};
use std::time::Duration;

use clap::builder::styling::Style;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::cli::CliError;

/// Columns of a terminal that does not say how many it has.
const WIDTH_UNKNOWN: u16 = 80;

/// Where the answer of a command goes.
pub(crate) struct Output {
    sink: Box<dyn Write>,
    json: bool,
    terminal: bool,
    now: Timestamp,
    zone: TimeZone,
}

impl Output {
    /// Standard output. Colours are cut if it is no terminal.
    pub(crate) fn standard(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { sink: Box::new(anstream::stdout()), json, terminal, now: Timestamp::now(), zone: TimeZone::system() }
    }

    /// Whether JSON is asked for.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Writes one line.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), CliError> {
        writeln!(self.sink, "{}", clean(text))?;
        Ok(self.sink.flush()?)
    }

    /// Writes one line in a style.
    pub(crate) fn styled(&mut self, style: Style, text: &str) -> Result<(), CliError> {
        Ok(writeln!(self.sink, "{style}{}{style:#}", clean(text))?)
    }

    /// Writes one line that is not part of the answer: beside it if the answer is JSON.
    pub(crate) fn note(&mut self, style: Style, text: &str) -> Result<(), CliError> {
        if !self.json {
            return self.styled(style, text);
        }
        Ok(writeln!(anstream::stderr(), "{style}{}{style:#}", clean(text))?)
    }

    /// Writes one line on standard error: what a person wants to know, and a pipe does not want to hold.
    pub(crate) fn aside(&mut self, text: &str) -> Result<(), CliError> {
        Ok(writeln!(anstream::stderr(), "{}", clean(text))?)
    }

    /// Writes what was done: a value if JSON is asked for, else one line.
    pub(crate) fn done(&mut self, value: &impl Serialize, text: &str) -> Result<(), CliError> {
        if self.json { self.value(value) } else { self.line(text) }
    }

    /// Writes bytes as they are: what is meant for a program.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.sink.write_all(bytes)?;
        Ok(self.sink.flush()?)
    }

    /// Writes a value as JSON.
    pub(crate) fn value(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| CliError::failed("write JSON", error))?;
        Ok(writeln!(self.sink, "{text}")?)
    }

    /// Writes a value as JSON, on one line.
    pub(crate) fn value_line(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|error| CliError::failed("write JSON", error))?;
        writeln!(self.sink, "{text}")?;
        Ok(self.sink.flush()?)
    }

    /// Writes a listing: JSON if that is asked for, else a table.
    pub(crate) fn listing<T: Serialize, const N: usize>(
        &mut self,
        items: &[T],
        header: [&str; N],
        row: impl Fn(&Self, &T) -> [String; N],
    ) -> Result<(), CliError> {
        if self.json {
            return self.value(&items);
        }
        let rows: Vec<[String; N]> = items.iter().map(|item| row(self, item)).collect();
        self.table(header, &rows)
    }

    fn table<const N: usize>(&mut self, header: [&str; N], rows: &[[String; N]]) -> Result<(), CliError> {
        if !self.terminal {
            for row in rows {
                writeln!(self.sink, "{}", row.each_ref().map(|cell| clean(cell)).join("\t"))?;
            }
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        // A terminal that knows no width, as `script` and the like make one.
        if table.width() == Some(0) {
            table.set_width(WIDTH_UNKNOWN);
        }
        table.set_header(header.map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
        for row in rows {
            table.add_row(row.each_ref().map(|cell| clean(cell)));
        }
        for line in table.lines() {
            writeln!(self.sink, "{}", line.trim())?;
        }
        Ok(())
    }

    /// Writes names with their values, one a line. An empty value is passed over.
    pub(crate) fn fields(&mut self, fields: &[(&str, String)]) -> Result<(), CliError> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            let value = clean(value);
            match self.terminal {
                true => writeln!(self.sink, "{name:width$}  {value}")?,
                false => writeln!(self.sink, "{name}\t{value}")?,
            }
        }
        Ok(())
    }

    /// How long ago something was, for a person: `3m`. For a program: when it was.
    pub(crate) fn age(&self, at_us: i64) -> String {
        if self.terminal { short_duration(self.now.as_microsecond().saturating_sub(at_us)) } else { stamp(at_us) }
    }

    /// How long something took, from one time to another or until now.
    pub(crate) fn took(&self, began_us: i64, ended_us: Option<i64>) -> String {
        let us = ended_us.unwrap_or_else(|| self.now.as_microsecond()).saturating_sub(began_us).max(0);
        if self.terminal { short_duration(us) } else { format!("{}.{:06}", us / 1_000_000, us % 1_000_000) }
    }

    /// A number of seconds: `850ms`, `12s` for a person.
    pub(crate) fn seconds(&self, seconds: f64) -> String {
        let us = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros();
        self.took(0, Some(i64::try_from(us).unwrap_or(i64::MAX)))
    }

    /// When something was.
    pub(crate) fn moment(&self, at_us: i64) -> String {
        match Timestamp::from_microsecond(at_us) {
            Ok(at) if self.terminal => at.to_zoned_datetime(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
            _ => stamp(at_us),
        }
    }

    /// The time of day with milliseconds, as this machine's clock has it.
    pub(crate) fn clock(&self, at_us: i64) -> String {
        let at = Timestamp::from_microsecond(at_us).unwrap_or_default();
        at.to_zoned_datetime(self.zone.clone()).strftime("%H:%M:%S%.3f").to_string()
    }

    /// A number of bytes: `1.5 MiB` for a person, the number alone for a program.
    pub(crate) fn bytes(&self, bytes: u64) -> String {
        if self.terminal { human_bytes(bytes) } else { bytes.to_string() }
    }

    /// A digest: its first digits for a person, all of it for a program.
    pub(crate) fn digest(&self, digest: &str) -> String {
        let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
        if self.terminal { digits.chars().take(12).collect() } else { format!("sha256:{digits}") }
    }

    /// Whether there is somebody to ask.
    pub(crate) fn can_ask() -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Asks a person a question to be answered with yes or no. No answer is a no.
    ///
    /// # Errors
    /// When there is no terminal to ask on.
    pub(crate) fn ask(&mut self, question: &str) -> Result<bool, CliError> {
        if !Self::can_ask() {
            return Err(CliError::usage("this asks before it takes effect, and there is no terminal to ask on", "pass --yes"));
        }
        self.sink.flush()?;
        let mut stderr = anstream::stderr();
        write!(stderr, "{question} [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        Ok(means_yes(&answer))
    }
}

fn means_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// A text with every character that is not for reading written as an escape: no tab or line break, and nothing that moves a cursor or turns
/// the direction of writing.
pub(crate) fn clean(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.extend(character.escape_unicode()),
            _ if character.is_control() => safe.extend(character.escape_default()),
            _ => safe.push(character),
        }
    }
    safe
}

/// A time as RFC 3339 has it.
fn stamp(at_us: i64) -> String {
    Timestamp::from_microsecond(at_us).map(|at| at.to_string()).unwrap_or_default()
}

/// A duration of so many microseconds with its largest unit, two where the first is small: `850ms`, `12s`, `3m`, `5h`, `2d`.
pub(crate) fn short_duration(us: i64) -> String {
    let ms = us.max(0) / 1000;
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..=9 => format!("{seconds}.{}s", ms % 1000 / 100),
        10..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes with its largest unit.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of a unit, so that no rounding to a float is needed.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = "KiB";
    for next in units.into_iter().skip(1) {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Counts with their names: `3 ready, 1 failed`.
pub(crate) fn counts<'a>(counts: impl IntoIterator<Item = (&'a String, &'a u64)>) -> String {
    let mut text = String::new();
    for (name, count) in counts.into_iter().filter(|(_, count)| **count > 0) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a `String` does not fail.
        write!(text, "{comma}{count} {name}").ok();
    }
    text
}

/// An output that a test reads.
#[cfg(test)]
pub(crate) mod fixture {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::Output;

    #[derive(Clone, Default)]
    pub(crate) struct Text(Arc<Mutex<Vec<u8>>>);

    impl Text {
        pub(crate) fn take(&self) -> String {
            let bytes = std::mem::take(&mut *self.0.lock().unwrap());
            anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string()
        }
    }

    impl Write for Text {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is written can be read from the text. It is 2026-01-01 00:00 UTC.
    pub(crate) fn output(json: bool, terminal: bool) -> (Output, Text) {
        let text = Text::default();
        let now = Timestamp::from_microsecond(NOW_US).unwrap();
        (Output { sink: Box::new(text.clone()), json, terminal, now, zone: TimeZone::UTC }, text)
    }

    pub(crate) const NOW_US: i64 = 1_767_225_600_000_000;
}

#[cfg(test)]
mod tests {
    use super::fixture::{NOW_US, output};
    use super::*;

    const MINUTE_US: i64 = 60_000_000;

    #[test]
    fn a_terminal_gets_a_table_and_a_pipe_gets_tabs() {
        let items = ["web-1", "w\t2\u{1b}[31m"];
        let row =
            |out: &Output, item: &&str| [item.to_string(), out.age(NOW_US - 3 * MINUTE_US), out.bytes(1536), out.digest(&"ab".repeat(32))];
        let header = ["NAME", "SINCE", "SIZE", "DIGEST"];
        let (mut out, text) = output(false, true);
        out.listing(&items, header, row).unwrap();
        let lines: Vec<String> = text.take().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["NAME SINCE SIZE DIGEST", "web-1 3m 1.5 KiB abababababab", "w\\t2\\u{1b}[31m 3m 1.5 KiB abababababab"]);

        let (mut out, text) = output(false, false);
        out.listing(&items, header, row).unwrap();
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(
            text.take(),
            format!("web-1\t2025-12-31T23:57:00Z\t1536\t{digest}\nw\\t2\\u{{1b}}[31m\t2025-12-31T23:57:00Z\t1536\t{digest}\n")
        );

        let (mut out, text) = output(true, true);
        out.listing(&items, header, row).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&text.take()).unwrap(), items);
    }

    #[test]
    fn a_duration_has_one_unit() {
        for (us, text) in [
            (-5, "0ms"),
            (850_000, "850ms"),
            (1_250_000, "1.2s"),
            (12_999_999, "12s"),
            (119_000_000, "119s"),
            (3 * MINUTE_US, "3m"),
            (120 * MINUTE_US, "2h"),
            (47 * 60 * MINUTE_US, "47h"),
            (48 * 60 * MINUTE_US, "2d"),
        ] {
            assert_eq!(short_duration(us), text);
        }
    }

    #[test]
    fn a_size_has_its_largest_unit() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_572_864, "1.5 MiB"), (1 << 30, "1.0 GiB"), (u64::MAX, "16777216.0 TiB")]
        {
            let told = human_bytes(bytes);
            assert!(told == text || bytes == u64::MAX && told.ends_with(" TiB"), "{bytes}: {told}");
        }
    }

    #[test]
    fn a_log_line_has_the_time_of_day() {
        let (out, _) = output(false, true);
        assert_eq!(out.clock(NOW_US + 43_384_123_000), "12:03:04.123");
        assert_eq!(out.moment(NOW_US), "2026-01-01 00:00:00");
        assert_eq!(out.took(NOW_US - 2_500_000, None), "2.5s");
        let (out, _) = output(false, false);
        assert_eq!(out.took(0, Some(1_500_000)), "1.500000");
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(["y\n", "Y", " yes \n"].into_iter().all(means_yes));
        assert!(!["", "\n", "n", "yep", "no"].into_iter().any(means_yes));
    }
}
