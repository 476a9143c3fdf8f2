//! Steps of a [`Shell`](crate::link::shell::Shell) over ssh: each is one command of the connection.

use crate::limits::PIECE_BYTES;
use crate::link::quote::command;
use crate::link::shell::{Input, Runner, Step};
use crate::machine::{CallError, Stream};

use super::error::SshError;
use super::transport::{Connection, Event, ExecInput};

/// Runs steps over a connection.
pub struct OverSsh(pub Connection);

#[async_trait::async_trait]
impl Runner for OverSsh {
    async fn run(&self, step: Step, output: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<i32, CallError> {
        let line = command(&["sh", "-c", &step.text]).map_err(|error| CallError::Invalid(error.to_string()))?;
        // Whatever the login shell is, this is read by the one of POSIX.
        let exec = self.0.exec(&format!("exec {line}")).await.map_err(lost)?;
        let (to, mut from) = exec.split();
        let mut sending = std::pin::pin!(send(to, step.input));
        let (mut sent, mut status) = (false, None);
        loop {
            let event = tokio::select! {
                // What a step does not read is its own affair: its status says how it ended.
                _ = &mut sending, if !sent => {
                    sent = true;
                    continue;
                }
                event = from.next() => event.map_err(lost)?,
            };
            match event {
                Some(Event::Stdout(bytes)) => output(Stream::Stdout, &bytes),
                Some(Event::Stderr(bytes)) => output(Stream::Stderr, &bytes),
                Some(Event::Exit(code)) => status = Some(code),
                None => return status.ok_or_else(|| CallError::Other("a step ended without a status".into())),
            }
        }
    }
}

fn lost(error: SshError) -> CallError {
    CallError::Unreachable(crate::machine::with_causes(&error))
}

async fn send(mut to: ExecInput, input: Input) -> Result<(), SshError> {
    match input {
        Input::None => {}
        Input::Whole(mut bytes) => {
            while !bytes.is_empty() {
                to.write(bytes.split_to(PIECE_BYTES.min(bytes.len()))).await?;
            }
        }
        Input::Pieces(begin) => {
            let mut pieces = begin();
            while let Some(piece) = pieces.recv().await {
                to.write(piece).await?;
            }
        }
    }
    to.finish().await
}
