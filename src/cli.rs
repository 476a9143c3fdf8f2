//! `muster` on the command line: the argument tree, the exit status and how errors are told.
//!
//! The tools for teams and admins talk to the server through `client` alone. What they print goes through `output`.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::cli::client::{Client, ClientError};
use crate::cli::output::{Output, clean};
use crate::config::PORT;
use crate::limits::{CONFIG_BYTES_MAX, NAME_BYTES_MAX};
use crate::sandbox::compiler::COMMAND;

mod agent;
mod bundle;
mod client;
mod compile;
mod completions;
mod controller;
mod demo;
mod export;
mod label;
mod module;
mod module_file;
mod output;
mod pinned;
mod replay;
mod run;
mod serve;
mod token;
mod try_module;

/// Registers build agents and provisions them with sandboxed WebAssembly modules.
#[derive(Debug, Parser)]
#[command(name = "muster", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of all commands")]
struct Global {
    /// The server to talk to
    #[arg(long, global = true, value_name = "URL", env = "MUSTER_URL", hide_env_values = true, default_value_t = format!("http://127.0.0.1:{PORT}"))]
    server: String,
    /// A file that holds the token; without it, `MUSTER_TOKEN` holds the token itself
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Prints JSON, as the server's API has it
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server
    Serve(serve::Args),
    /// Does the whole job on this machine in a temporary directory, and tells what happened
    Demo(demo::Args),
    /// Uploads modules and looks at them
    #[command(subcommand)]
    Module(module::Command),
    /// Uploads bundles and looks at them
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Sets what the server does for a label
    #[command(subcommand)]
    Label(label::Command),
    /// Looks at the controllers that agents work for
    #[command(subcommand)]
    Controller(controller::Command),
    /// Makes and revokes tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Looks at agents and acts on them
    #[command(subcommand)]
    Agent(agent::Command),
    /// Looks at runs and their logs
    #[command(subcommand)]
    Run(run::Command),
    /// Prints the completions for a shell
    Completions(completions::Args),
    /// Prints the manual pages
    Man(completions::ManArgs),
    /// Compiles a component for a server
    #[command(name = COMMAND, hide = true)]
    Compile(compile::Args),
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// It was not asked properly: exit status 2.
    #[error("{problem}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// What to do next.
        hint: String,
    },
    /// The server refused, or could not be asked.
    #[error("can not {what}")]
    Server {
        /// What was not done: `list the agents`.
        what: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// Something on this machine failed.
    #[error("can not {what}")]
    Failed {
        /// What was not done: `read policy.toml`.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What is to be told as it is: to a program.
    #[error("{0}")]
    Told(String),
    /// What was to be written went nowhere.
    #[error("can not write the answer")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// Something on this machine failed: what was not done, and why.
    pub(crate) fn failed(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { what: what.into(), source: source.into() }
    }

    /// The command was not asked properly.
    pub(crate) fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: hint.into() }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::Server { source, .. } => source.hint(),
            Self::Failed { .. } | Self::Told(_) | Self::Output(_) => None,
        }
    }

    fn status(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            // Whoever read the output has seen enough: `muster agent ls | head -1`.
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
            Self::Server { .. } | Self::Failed { .. } | Self::Told(_) | Self::Output(_) => 1,
        }
    }
}

/// Adds what was not done to the reason that the client gives: `.map_err(doing("list the agents"))`.
pub(crate) fn doing(what: impl Into<String>) -> impl FnOnce(ClientError) -> CliError {
    move |source| CliError::Server { what: what.into(), source }
}

/// Runs the program that this process's arguments ask for. The status is 0 when it is done, 1 when it was refused or failed, 2 when it was
/// not asked properly.
pub fn main() -> ExitCode {
    let arguments = match parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to be told when this can not be written.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tell(&CliError::failed("start", error)),
    };
    match runtime.block_on(Box::pin(act(arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell(&error),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(arguments)
}

async fn act(arguments: Arguments) -> Result<(), CliError> {
    let Arguments { global, command } = arguments;
    let mut output = Output::standard(global.json);
    let output = &mut output;
    match command {
        Command::Serve(args) => Box::pin(serve::run(args)).await,
        Command::Demo(args) => Box::pin(demo::run(args, output.json())).await,
        Command::Module(command) => Box::pin(module::run(command, || global.client(), output)).await,
        Command::Bundle(command) => Box::pin(bundle::run(command, &global.client()?, output)).await,
        Command::Label(command) => Box::pin(label::run(command, &global.client()?, output)).await,
        Command::Controller(command) => Box::pin(controller::run(command, &global.client()?, output)).await,
        Command::Token(command) => Box::pin(token::run(command, &global.client()?, output)).await,
        Command::Agent(command) => Box::pin(agent::run(command, &global.client()?, output)).await,
        Command::Run(command) => Box::pin(run::run(command, || global.client(), output)).await,
        Command::Completions(args) => completions::completions(&args, Arguments::command(), output),
        Command::Compile(args) => compile::run(args),
        Command::Man(args) => completions::man(&args, Arguments::command(), output),
    }
}

impl Global {
    fn client(&self) -> Result<Client, CliError> {
        let token = self.token()?;
        let wrong = |error: ClientError| CliError::usage(error.to_string(), error.hint().unwrap_or_default());
        Client::new(&self.server, token.trim()).map_err(wrong)
    }

    fn token(&self) -> Result<String, CliError> {
        if let Some(file) = &self.token_file {
            return read_text(file);
        }
        #[expect(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
        match std::env::var("MUSTER_TOKEN") {
            Ok(token) if !token.trim().is_empty() => Ok(token),
            _ => Err(CliError::usage(
                "no token is given",
                "pass --token-file FILE or set MUSTER_TOKEN; `muster serve` writes an admin's token to DATA/admin.token at its first start",
            )),
        }
    }
}

/// This program, to be started anew: on Linux by what runs, as its file may have been replaced by another version.
fn program() -> Result<PathBuf, CliError> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        return Ok(running);
    }
    std::env::current_exe().map_err(|error| CliError::failed("find this program's file", error))
}

/// The text of a small file that the caller named.
fn read_text(file: &std::path::Path) -> Result<String, CliError> {
    use std::io::Read as _;
    let failed = |error: std::io::Error| CliError::failed(format!("read {}", file.display()), error);
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    let bytes = opened.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes > CONFIG_BYTES_MAX) {
        return Err(CliError::failed(format!("read {}", file.display()), format!("it has more than {CONFIG_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// An id, as the server made it.
fn id(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if fits { Ok(text.into()) } else { Err("an id is made of letters, digits, `-` and `_`".into()) }
}

fn tell(error: &CliError) -> ExitCode {
    let status = error.status();
    if status != 0 {
        let text = if let CliError::Told(text) = error { text.clone() } else { report(error) };
        // Nobody is left to be told when this can not be written.
        anstream::stderr().write_all(text.as_bytes()).ok();
    }
    ExitCode::from(status)
}

/// `error: what failed: why`, and after a blank line `hint: …` if there is one; with colours, which are cut where there is no terminal.
fn report(error: &CliError) -> String {
    let (red, blue) = (AnsiColor::Red.on_default().bold(), AnsiColor::Cyan.on_default().bold());
    let mut text = format!("{red}error:{red:#} {}\n", chain(error));
    if let Some(hint) = error.hint().filter(|hint| !hint.is_empty()) {
        text.push_str(&format!("\n{blue}hint:{blue:#} {}\n", lines(&hint)));
    }
    text
}

/// An error and its causes, joined by colons.
fn chain(error: &dyn Error) -> String {
    let mut text = lines(&error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        // The HTTP client wraps a cause in its own layers, which say nothing that a person needs: the root does.
        let cause = if cause.is::<reqwest::Error>() { root(cause) } else { cause };
        let told = lines(&cause.to_string());
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

fn root<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

/// Text that may come from elsewhere, made safe to show, with its lines kept.
fn lines(text: &str) -> String {
    text.trim_end().split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

/// What stands for itself in a text of many lines.
const HEADING: Style = Style::new().bold();

#[cfg(test)]
mod tests {
    use super::*;

    fn status(arguments: &[&str]) -> Result<(), bool> {
        let arguments = arguments.iter().map(OsString::from);
        parse(arguments).map(drop).map_err(|error| error.use_stderr())
    }

    #[test]
    fn the_argument_tree_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_interface_is_there() {
        for line in [
            "muster serve",
            "muster demo",
            "muster module push hook.wasm --name base --team media --json",
            "muster module push hook.js --name base",
            "muster module ls",
            "muster module show base",
            "muster module show base@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "muster module inspect hook.wasm",
            "muster module try hook.wasm --root /tmp",
            "muster bundle push dir --name tools --team media",
            "muster bundle ls --limit 3",
            "muster bundle show tools",
            "muster bundle diff tools tools",
            "muster label apply -f policy.toml --yes",
            "muster label ls",
            "muster label show linux",
            "muster label history linux",
            "muster label swap linux --module base --yes",
            "muster label rollback linux --to 3",
            "muster label edit linux --yes",
            "muster token create --kind join --team media --label linux --label large",
            "muster controller ls",
            "muster controller check main",
            "muster token ls",
            "muster token revoke 0198",
            "muster agent ls --label linux --state ready --json",
            "muster agent show web-1",
            "muster agent explain web-1",
            "muster agent provision web-1",
            "muster agent drain web-1 --reason disk",
            "muster agent quarantine web-1",
            "muster agent remove web-1",
            "muster run ls --agent web-1 --label linux",
            "muster run show 0198",
            "muster run logs 0198 --follow",
            "muster run replay 0198",
            "muster run replay linux.export --module hook.wasm",
            "muster run export 0198 -o run.export",
            "muster run export --label linux --last 100 --with-module",
            "muster module check hook.wasm --label linux --last 500",
            "muster module check hook.wasm --from linux.export --json",
            "muster --server http://h:1 --token-file t run ls",
            "muster completions bash",
            "muster man --out dir",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(status(&words), Ok(()), "{line}");
        }
    }

    #[test]
    fn what_can_not_be_meant_is_a_usage_error() {
        for line in [
            "muster",
            "muster nonsense",
            "muster module push hook.wasm",
            "muster module push hook.wasm --name a/b",
            "muster agent ls --state tired",
            "muster agent show ..",
            "muster run logs ../x",
            "muster run export",
            "muster run export 0198 --label linux",
            "muster module check hook.wasm",
            "muster module check hook.wasm --label linux --from linux.export",
            "muster label swap linux",
            "muster token create --kind king",
            "muster bundle diff tools",
            "muster run ls --limit 0",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(status(&words), Err(true), "{line}");
        }
        assert_eq!(status(&["muster", "--help"]), Err(false));
    }

    #[test]
    fn an_error_says_what_failed_why_and_what_to_do() {
        let plain = |error: &CliError| anstream::adapter::strip_str(&report(error)).to_string();
        let inner = std::io::Error::other("the disk is full");
        assert_eq!(plain(&CliError::failed("read policy.toml", inner)), "error: can not read policy.toml: the disk is full\n");
        let usage = CliError::usage("no token is given", "set MUSTER_TOKEN");
        assert_eq!(plain(&usage), "error: no token is given\n\nhint: set MUSTER_TOKEN\n");
        assert_eq!((usage.status(), CliError::failed("x", "y").status()), (2, 1));
        let hostile = CliError::failed("x", "\u{1b}[2Jgone\u{7}");
        assert_eq!(plain(&hostile), "error: can not x: \\u{1b}[2Jgone\\u{7}\n");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let error = CliError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(error.status(), 0);
    }
}
