//! Load over loopback: how many registrations and polls a server takes in a second, beside a bare axum handler in the same run.
//!
//! ```text
//! cargo bench --bench load -- [--agents 2000] [--connections 32] [--rounds 5] [--seconds 2] [--json]
//! ```
//!
//! Both servers run in this process, each on a runtime of its own with two worker threads; one client drives them in turn over
//! keep-alive connections, without pipelining. The bare handler parses the same body into the same type and answers with the bytes of
//! one of the server's own polls; it checks, keeps and writes nothing. Client and servers share the machine's cores, so requests a
//! second hold the client's share too; the processor time of a server's own threads is told beside it.
//!
//! The agents have no release, so each answer also tells them to open a session; otherwise their polls are those of agents that are
//! ready. The database is in the directory for temporary files (`TMPDIR`): where that is in memory, registrations cost no disk.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header;
use axum::routing::post;
use futures_util::future::try_join_all;
use muster::api::{LinkKind, Register, Registered, TokenAsked, TokenKind, TokenMade};
use muster::config::Config;
use muster::limits::AGENTS_MAX;
use muster::server::{Failure, Server};
use muster::telemetry::{LogFormat, start_log};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// What each server's threads are named, so that their processor time can be told apart. Linux keeps 15 bytes.
const MUSTER: &str = "muster-server";
const BARE: &str = "bare-server";
/// Worker threads of each server.
const WORKERS: usize = 2;
/// Requests of one connection in one round, at most.
const REQUESTS_MAX: usize = 2_000_000;
/// How long one round of registrations may take: unlike the others, it ends with its agents.
const REGISTERING_MAX: Duration = Duration::from_secs(120);
/// How long what is under way at the end of a round may still take.
const OVERTIME: Duration = Duration::from_secs(30);
/// Bytes of one answer, at most.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

fn main() -> Result<(), Failure> {
    let args = Args::parse(std::env::args().skip(1))?;
    // As a server in service has it: what is asked of the log is turned down, not absent.
    start_log("warn", LogFormat::Compact)?;
    let (served, bare) = (runtime(MUSTER)?, runtime(BARE)?);
    let client = Builder::new_current_thread().enable_all().build()?;
    let data = tempfile::tempdir()?;
    let config = Config { listen: loopback(), data: data.path().join("data"), ..Config::default() };
    let server = served.block_on(Server::start(&config, env!("CARGO_BIN_EXE_muster").into()))?;
    let report = client.block_on(measure(&args, &server, &bare));
    served.block_on(server.stop())?;
    bare.shutdown_background();
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.json(&args))?)
    } else {
        report.print(&args)
    }
    Ok(())
}

/// What is asked for.
struct Args {
    agents: usize,
    connections: usize,
    rounds: usize,
    seconds: f64,
    json: bool,
}

impl Args {
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut args = Self { agents: 2_000, connections: 32, rounds: 5, seconds: 2.0, json: false };
        while let Some(name) = given.next() {
            match name.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--json" => args.json = true,
                "--agents" => args.agents = number(&name, given.next(), 1, AGENTS_MAX - 1)?,
                "--connections" => args.connections = number(&name, given.next(), 1, 1_000)?,
                "--rounds" => args.rounds = number(&name, given.next(), 1, 50)?,
                "--seconds" => args.seconds = number(&name, given.next(), 0.1, 60.0)?,
                other => return Err(format!("`{other}` is none of --agents, --connections, --rounds, --seconds, --json").into()),
            }
        }
        args.connections = args.connections.min(args.agents);
        Ok(args)
    }
}

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(name: &str, text: Option<String>, min: T, max: T) -> Result<T, Failure> {
    let number = text.and_then(|text| text.parse().ok()).filter(|number| (&min..=&max).contains(&number));
    number.ok_or_else(|| format!("{name} takes a number between {min} and {max}").into())
}

fn runtime(name: &str) -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(WORKERS).thread_name(name).enable_all().build()
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Runs all rounds.
async fn measure(args: &Args, server: &Server, bare: &Runtime) -> Result<Report, Failure> {
    let admin = std::fs::read_to_string(&server.admin_token)?;
    let mut one = Connection::open(server.address).await?;
    let labels = vec!["bench".parse()?, "linux".parse()?];
    let asked = TokenAsked { kind: TokenKind::Join, team: None, labels };
    let join = one.exchange(&request("/v1/tokens", admin.trim(), &serde_json::to_vec(&asked)?)).await?;
    let join = join.of::<TokenMade>(201)?.secret;

    // One agent ahead of all others shows what a poll is answered with.
    let first = serde_json::to_vec(&claims(0)?)?;
    let credential = credential(one.exchange(&request("/v1/register", &join, &first)).await?.of(201)?)?;
    let poll = request("/v1/register", &credential, &first);
    let answer = one.exchange(&poll).await?.body_of(200)?.to_vec();
    let (request_bytes, answer_bytes) = (poll.len(), answer.len());
    let address = bare.spawn(serve_bare(answer)).await??;

    let rss_before = rss_bytes();
    let mut driver = Driver { muster: open(server.address, args).await?, bare: open(address, args).await? };
    let pass = Duration::from_secs_f64(args.seconds);
    let bodies = (1..=args.agents).map(|at| Ok(serde_json::to_vec(&claims(at)?)?)).collect::<Result<Vec<_>, Failure>>()?;
    let mut registrations = Pair::default();
    let mut polls = Vec::new();
    for bodies in bodies.chunks(args.agents.div_ceil(args.rounds)) {
        let requests: Vec<_> = bodies.iter().map(|body| request("/v1/register", &join, body)).collect();
        let bare = Bound { passes: usize::MAX, time: pass, status: 200, keep: false };
        registrations.bare.push(drive(&mut driver.bare, BARE, &requests, bare).await?);
        let once = Bound { passes: 1, time: REGISTERING_MAX, status: 201, keep: true };
        let mut round = drive(&mut driver.muster, MUSTER, &requests, once).await?;
        for (at, answer) in std::mem::take(&mut round.answers) {
            let body = bodies.get(at).ok_or("an answer to no request")?;
            polls.push(request("/v1/register", &credential_in(&answer)?, body));
        }
        registrations.muster.push(round);
    }
    if polls.len() != args.agents {
        return Err(format!("{} of {} agents were registered in time", polls.len(), args.agents).into());
    }
    let rss_after = rss_bytes();
    drop(bodies);

    let mut polled = Pair::default();
    let bound = Bound { passes: usize::MAX, time: pass, status: 200, keep: false };
    // The first round of each warms up, and is not counted.
    for round in 0..=args.rounds {
        let bare = drive(&mut driver.bare, BARE, &polls, bound).await?;
        let muster = drive(&mut driver.muster, MUSTER, &polls, bound).await?;
        if round > 0 {
            polled.bare.push(bare);
            polled.muster.push(muster);
        }
    }
    let client_bytes = polls.iter().map(Vec::capacity).sum();
    Ok(Report { registrations, polls: polled, request_bytes, answer_bytes, rss_before, rss_after, client_bytes })
}

/// What an agent says of itself: as much as a real one.
fn claims(at: usize) -> Result<Register, Failure> {
    let attributes = [("zone", "eu-central-1a"), ("kernel", "6.8.0-45-generic"), ("cpus", "16"), ("memory_mib", "65536")];
    Ok(Register {
        name: format!("agent-{at:06}").parse()?,
        labels: vec!["bench".parse()?, "linux".parse()?],
        executors: 4,
        root: "/srv/build".into(),
        address: Some(format!("10.0.{}.{}:22", at / 250 % 250, at % 250)),
        os: "linux".into(),
        arch: "x86_64".into(),
        image: Some("builder-2024-10-01".into()),
        attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>(),
        ssh_host_key: None,
        instance: Some(format!("{at:032x}")),
        link: LinkKind::Session,
        baked: Vec::new(),
    })
}

fn credential(registered: Registered) -> Result<String, Failure> {
    registered.credential.ok_or_else(|| "a registration brought no credential".into())
}

fn credential_in(answer: &[u8]) -> Result<String, Failure> {
    credential(serde_json::from_slice(answer)?)
}

fn request(path: &str, secret: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\ncontent-type: application/json\r\n\
        content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Begins to serve the handler to compare with: the same body into the same type, a fixed answer, no layers.
async fn serve_bare(answer: Vec<u8>) -> std::io::Result<SocketAddr> {
    let answer = bytes::Bytes::from(answer);
    let handler = async move |axum::Json(_): axum::Json<Register>| ([(header::CONTENT_TYPE, "application/json")], answer.clone());
    let listener = TcpListener::bind(loopback()).await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, Router::new().route("/v1/register", post(handler))).into_future());
    Ok(address)
}

/// The client's connections to both servers.
struct Driver {
    muster: Vec<Connection>,
    bare: Vec<Connection>,
}

async fn open(address: SocketAddr, args: &Args) -> Result<Vec<Connection>, Failure> {
    try_join_all((0..args.connections).map(|_| Connection::open(address))).await
}

/// A keep-alive connection that knows as much of HTTP as this needs: a status, a length, a body.
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer, in the buffer of its connection.
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(4096) })
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>, Failure> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let (status, body) = loop {
            if let Some((status, body, end)) = head(&self.received)?
                && self.received.len() >= end
            {
                break (status, body..end);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 || self.received.len() > ANSWER_BYTES_MAX {
                return Err("the server closed the connection, or its answer has no end".into());
            }
        };
        Ok(Answer { status, body: self.received.get(body).unwrap_or_default() })
    }
}

impl<'a> Answer<'a> {
    fn body_of(self, status: u16) -> Result<&'a [u8], Failure> {
        if self.status == status {
            return Ok(self.body);
        }
        Err(format!("the answer is {} instead of {status}: {}", self.status, String::from_utf8_lossy(self.body)).into())
    }

    fn of<T: serde::de::DeserializeOwned>(self, status: u16) -> Result<T, Failure> {
        Ok(serde_json::from_slice(self.body_of(status)?)?)
    }
}

/// The status of an answer, and where its body begins and ends; none while its head is not whole.
fn head(received: &[u8]) -> Result<Option<(u16, usize, usize)>, Failure> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(at) = received.windows(END.len()).position(|window| window == END) else { return Ok(None) };
    let mut lines = std::str::from_utf8(received.get(..at).unwrap_or_default())?.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let length = lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, length)| length.trim().parse::<usize>().ok());
    let (Some(status), Some(length)) = (status, length) else { return Err("the answer has no status or no length".into()) };
    Ok(Some((status, at + END.len(), at + END.len() + length)))
}

/// What ends a round, and what its answers must be.
#[derive(Clone, Copy)]
struct Bound {
    /// How often the requests are sent.
    passes: usize,
    /// After how long no more is sent.
    time: Duration,
    /// The status of every answer.
    status: u16,
    /// Whether the answers are wanted.
    keep: bool,
}

/// What one round brought.
struct Round {
    requests: usize,
    seconds: f64,
    /// Processor time of the server's threads.
    cpu: Option<Duration>,
    /// Which request was answered with what.
    answers: Vec<(usize, Vec<u8>)>,
}

/// Sends requests over all connections at once, each its own share of them over and over.
async fn drive(connections: &mut [Connection], server: &str, requests: &[Vec<u8>], bound: Bound) -> Result<Round, Failure> {
    let (count, cpu, began) = (connections.len(), cpu_of(server), Instant::now());
    let work = connections.iter_mut().enumerate().map(async |(first, connection)| {
        let mut answered = 0_usize;
        let mut answers = Vec::new();
        let own = requests.iter().enumerate().skip(first).step_by(count);
        let all = own.len().saturating_mul(bound.passes).min(REQUESTS_MAX);
        for (at, request) in own.cycle().take(all) {
            if began.elapsed() > bound.time {
                break;
            }
            let body = connection.exchange(request).await?.body_of(bound.status)?;
            answered += 1;
            if bound.keep {
                answers.push((at, body.to_vec()));
            }
        }
        Ok::<_, Failure>((answered, answers))
    });
    let shares = tokio::time::timeout(bound.time + OVERTIME, try_join_all(work)).await??;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_of(server).zip(cpu).map(|(after, before)| after.saturating_sub(before));
    let requests = shares.iter().map(|(answered, _)| answered).sum();
    Ok(Round { requests, seconds, cpu, answers: shares.into_iter().flat_map(|(_, answers)| answers).collect() })
}

/// The processor time of this process's threads of a name, where the system tells it.
fn cpu_of(name: &str) -> Option<Duration> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?.filter_map(Result::ok).map(|thread| thread.path());
    let named = threads.filter(|thread| std::fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let times = named.map(|thread| std::fs::read_to_string(thread.join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok());
    times.sum::<Option<u64>>().map(Duration::from_nanos)
}

/// The memory of this process that is in use, where the system tells it.
fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The rounds of both servers, in the order in which they took turns.
#[derive(Default)]
struct Pair {
    bare: Vec<Round>,
    muster: Vec<Round>,
}

/// The middle of some figures, and the least and the greatest.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, min: *figures.first()?, max: *figures.last()? })
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Round {
    #[expect(clippy::cast_precision_loss, reason = "fewer requests than an f64 counts exactly")]
    fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    #[expect(clippy::cast_precision_loss, reason = "fewer requests than an f64 counts exactly")]
    fn cpu_us(&self) -> Option<f64> {
        Some(self.cpu?.as_secs_f64() * 1e6 / self.requests.max(1) as f64)
    }
}

fn per_second(rounds: &[Round]) -> Option<Spread> {
    Spread::of(rounds.iter().map(Round::per_second))
}

/// Processor time of a server's own threads for one request, in microseconds.
fn cpu_us(rounds: &[Round]) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(Round::cpu_us))
}

impl Pair {
    fn sides(&self) -> [(&'static str, &[Round]); 2] {
        [("bare", &self.bare), ("muster", &self.muster)]
    }

    /// Muster's requests a second as a share of the bare handler's: of the medians, and the spread over the turns.
    fn ratio(&self) -> Option<Spread> {
        let turns = Spread::of(self.muster.iter().zip(&self.bare).map(|(muster, bare)| muster.per_second() / bare.per_second()))?;
        Some(Spread { median: per_second(&self.muster)?.median / per_second(&self.bare)?.median, ..turns })
    }

    /// The same by processor time of the servers' threads alone, without the client's.
    fn cpu_ratio(&self) -> Option<f64> {
        Some(cpu_us(&self.bare)?.median / cpu_us(&self.muster)?.median)
    }

    fn json(&self) -> serde_json::Value {
        let side = |rounds: &[Round]| {
            serde_json::json!({
                "per_second": per_second(rounds).map(|spread| spread.json()),
                "cpu_us": cpu_us(rounds).map(|spread| spread.json()),
                "requests": rounds.iter().map(|round| round.requests).sum::<usize>(),
            })
        };
        serde_json::json!({
            "bare": side(&self.bare),
            "muster": side(&self.muster),
            "ratio": self.ratio().map(|ratio| ratio.json()),
            "cpu_ratio": self.cpu_ratio(),
        })
    }
}

/// All that was measured.
struct Report {
    registrations: Pair,
    polls: Pair,
    request_bytes: usize,
    answer_bytes: usize,
    rss_before: Option<u64>,
    rss_after: Option<u64>,
    /// Bytes that the client itself keeps for its polls.
    client_bytes: usize,
}

impl Report {
    /// What each agent added to this process's memory, the client's own left out.
    fn agent_bytes(&self, args: &Args) -> Option<u64> {
        let grown = self.rss_after?.checked_sub(self.rss_before?)?;
        Some(grown.saturating_sub(u64::try_from(self.client_bytes).ok()?) / u64::try_from(args.agents).ok()?)
    }

    fn json(&self, args: &Args) -> serde_json::Value {
        serde_json::json!({
            "agents": args.agents,
            "connections": args.connections,
            "rounds": args.rounds,
            "seconds": args.seconds,
            "workers": WORKERS,
            "optimised": !cfg!(debug_assertions),
            "request_bytes": self.request_bytes,
            "answer_bytes": self.answer_bytes,
            "registrations": self.registrations.json(),
            "polls": self.polls.json(),
            "rss_before_bytes": self.rss_before,
            "rss_after_bytes": self.rss_after,
            "agent_bytes": self.agent_bytes(args),
        })
    }

    fn print(&self, args: &Args) {
        let build = if cfg!(debug_assertions) { "NOT OPTIMISED: the figures mean nothing" } else { "optimised" };
        println!(
            "{} agents, {} connections, {} rounds of {} s, {WORKERS} worker threads a server, {build}",
            args.agents, args.connections, args.rounds, args.seconds
        );
        println!("a poll: {} bytes of request, {} bytes of answer, `session` in it", self.request_bytes, self.answer_bytes);
        println!();
        println!("{:<14} {:<7} {:>10} {:>10} {:>10} {:>12}", "", "", "median/s", "min/s", "max/s", "CPU µs each");
        for (phase, pair) in [("registrations", &self.registrations), ("polls", &self.polls)] {
            for (name, rounds) in pair.sides() {
                let Some(rate) = per_second(rounds) else { continue };
                let cpu = cpu_us(rounds).map_or_else(|| "-".to_owned(), |cpu| format!("{:.1}", cpu.median));
                println!("{phase:<14} {name:<7} {:>10.0} {:>10.0} {:>10.0} {cpu:>12}", rate.median, rate.min, rate.max);
            }
        }
        println!();
        for (phase, pair) in [("registrations", &self.registrations), ("polls", &self.polls)] {
            let Some(ratio) = pair.ratio() else { continue };
            let cpu = pair.cpu_ratio().map_or_else(String::new, |cpu| format!("; {cpu:.2} by the servers' processor time alone"));
            println!("{phase}: muster / bare = {:.2} ({:.2} to {:.2} over the rounds){cpu}", ratio.median, ratio.min, ratio.max);
        }
        if let (Some(before), Some(after), Some(agent)) = (self.rss_before, self.rss_after, self.agent_bytes(args)) {
            println!(
                "memory of this process: {} KiB, {} KiB with the agents: {agent} bytes an agent, the client's requests left out",
                before / 1024,
                after / 1024
            );
        }
    }
}
