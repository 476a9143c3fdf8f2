//! Where recordings come from: a server, or an export.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use futures_util::{StreamExt as _, stream};

use crate::cli::client::{Client, ClientError};
use crate::cli::replay::Items;
use crate::cli::{CliError, doing};
use crate::journal::recording::{ReadError, Reader, Whole};
use crate::limits::{EXPORT_LINE_BYTES_MAX, RECORDING_BYTES_MAX, RECORDINGS_AT_ONCE};

/// The recordings of some runs, in this order.
pub(super) fn of_server(client: &Client, ids: Vec<String>) -> Items<'_> {
    let fetched = stream::iter(ids).map(async |id| {
        let text = export_lines(client, &id).await?;
        let mut reader = Reader::default();
        for line in text.lines() {
            if let Some(whole) = reader.feed(line).map_err(|error| not_read(&id, error))? {
                return Ok(whole);
            }
        }
        Err(not_read(&id, ReadError::CutOff))
    });
    fetched.buffered(RECORDINGS_AT_ONCE).boxed()
}

/// The lines of a run's recording.
pub(crate) async fn export_lines(client: &Client, id: &str) -> Result<String, CliError> {
    let bytes = client.get_raw(&["runs", id, "recording"], "application/x-ndjson", RECORDING_BYTES_MAX).await;
    let bytes = bytes.map_err(doing(format!("fetch the recording of the run {id}")))?;
    String::from_utf8(bytes)
        .map_err(|_| doing(format!("fetch the recording of the run {id}"))(ClientError::Answer("it is no UTF-8".into())))
}

fn not_read(id: &str, error: ReadError) -> CliError {
    CliError::failed(format!("read the recording of the run {id}"), error)
}

/// What an export holds, in its order.
pub(super) fn of_export(file: &Path) -> Result<Items<'static>, CliError> {
    let what = format!("read {}", file.display());
    let failed = |error: std::io::Error| CliError::failed(what.clone(), error);
    let opened = File::open(file).map_err(failed)?;
    let lines = BufReader::new(zstd::Decoder::new(opened).map_err(failed)?);
    let export = Export { what, lines: Some(lines), reader: Reader::default() };
    Ok(stream::iter(export).boxed())
}

struct Export {
    what: String,
    lines: Option<BufReader<zstd::Decoder<'static, BufReader<File>>>>,
    reader: Reader,
}

impl Iterator for Export {
    type Item = Result<Whole, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = match next_line(self.lines.as_mut()?) {
                Ok(Some(line)) => self.reader.feed(&line).map_err(|error| CliError::failed(self.what.clone(), error)),
                Ok(None) => {
                    self.lines = None;
                    let end = std::mem::take(&mut self.reader).finish();
                    return end.err().map(|error| Err(CliError::failed(self.what.clone(), error)));
                }
                Err(error) => Err(CliError::failed(self.what.clone(), error)),
            };
            if found.is_err() {
                self.lines = None;
            }
            if let Some(found) = found.transpose() {
                return Some(found);
            }
        }
    }
}

fn next_line(lines: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    let limit = EXPORT_LINE_BYTES_MAX as u64;
    let bytes = lines.take(limit).read_until(b'\n', &mut line)?;
    if bytes == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(std::io::Error::other("a line has no end, or is too long"));
    }
    String::from_utf8(line).map(Some).map_err(|_| std::io::Error::other("it is no UTF-8"))
}
