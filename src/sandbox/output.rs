//! A module's standard output and error on their way to the log.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::journal::{Level, Recorder};
use crate::limits::{LOG_LINE_BYTES_MAX, OUTPUT_LOG_LINES_MAX, PIECE_BYTES};

/// One of the two outputs. What is over the limit is thrown away, and the log says so.
#[derive(Clone)]
pub(crate) struct LogPipe {
    level: Level,
    recorder: Recorder,
    partial: Arc<Mutex<Vec<u8>>>,
    lines_left: Arc<AtomicU32>,
}

impl LogPipe {
    /// Standard output and standard error, with one limit for both.
    pub(crate) fn pair(recorder: Recorder) -> (Self, Self) {
        let lines_left = Arc::new(AtomicU32::new(OUTPUT_LOG_LINES_MAX));
        let pipe = |level| Self { level, recorder: recorder.clone(), partial: Arc::default(), lines_left: Arc::clone(&lines_left) };
        (pipe(Level::Stdout), pipe(Level::Stderr))
    }

    fn feed(&self, bytes: &[u8]) {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || partial.len() > LOG_LINE_BYTES_MAX {
                self.line(&std::mem::take(&mut *partial));
            }
        }
    }

    fn line(&self, line: &[u8]) {
        let left = self.lines_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if let Ok(left) = left {
            let text = String::from_utf8_lossy(line);
            let text = text.trim_end();
            let end = text.floor_char_boundary(LOG_LINE_BYTES_MAX);
            self.recorder.line(self.level, text.get(..end).unwrap_or_default().to_owned());
            if left == 1 {
                self.recorder.line(Level::Warn, "the module writes more; it is not copied to the log".into());
            }
        }
    }
}

impl Drop for LogPipe {
    fn drop(&mut self) {
        // The engine clones the pipe for each stream; the last one writes what has no end of line.
        if Arc::strong_count(&self.partial) == 1 {
            let rest = std::mem::take(&mut *self.partial.lock().unwrap_or_else(PoisonError::into_inner));
            if !rest.is_empty() {
                self.line(&rest);
            }
        }
    }
}

impl IsTerminal for LogPipe {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogPipe {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    /// The adapter that the engine would put here writes from a task of its own, which the end of the run would cut off.
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for LogPipe {
    async fn ready(&mut self) {}
}

impl OutputStream for LogPipe {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.feed(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PIECE_BYTES)
    }
}

impl AsyncWrite for LogPipe {
    fn poll_write(self: Pin<&mut Self>, _context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.feed(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
