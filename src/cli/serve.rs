//! `muster serve`: the server as a program, with its log and its signals.

use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::agent::Signals;
use crate::cli::{CliError, program};
use crate::config::Config;
use crate::server::{Failure, Server};
use crate::telemetry::{LogFormat, start_log};

/// What `muster serve` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory that holds everything
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The address to listen on
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Which log lines: `info`, `muster=debug`
    #[arg(long, value_name = "FILTER", env = "MUSTER_LOG", default_value = "info")]
    log: String,
    /// Writes log lines as JSON
    #[arg(long)]
    log_json: bool,
}

/// Takes as many open files as the machine lets it have: each agent keeps a connection or two, and the usual 1024 are few hundred agents.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// Runs the server until it is told to stop.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let failed = |what: &'static str| move |error: Failure| CliError::Failed { what: what.into(), source: error };
    let format = if args.log_json { LogFormat::Json } else { LogFormat::Compact };
    start_log(&args.log, format).map_err(|error| failed("begin the log")(error.into()))?;
    let mut config = Config::load(args.config.as_deref()).map_err(|error| failed("read the configuration")(error.into()))?;
    config.data = args.data.unwrap_or(config.data);
    config.listen = args.listen.unwrap_or(config.listen);
    raise_descriptors();
    let mut signals = Signals::new().map_err(|error| failed("listen for signals")(error.into()))?;
    let server = tokio::select! {
        started = Server::start(&config, program()?) => started.map_err(failed("start the server"))?,
        () = signals.next() => return Err(failed("start the server")("it was told to end".into())),
    };
    if server.admin_token_is_new {
        let path = server.admin_token.display();
        eprintln!("This first start made an admin's token in {path}; use it with `--token-file {path}`.");
    }
    eprintln!("Listening on http://{}", server.address);
    signals.next().await;
    eprintln!("Stopping.");
    tokio::select! {
        stopped = server.stop() => stopped.map_err(failed("stop the server")),
        () = signals.next() => Err(failed("stop the server")("it was told to end a second time, and did not wait".into())),
    }
}
