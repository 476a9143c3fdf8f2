//! Keeps running what the server had launched.
//!
//! One task owns the program. It goes on whether or not a session is open: a lost session or a restarted server does not end it. Its
//! process id is kept in `.muster/launched.pid`, so that an agent that was killed ends what it left behind when it comes back; that needs
//! `/proc`, so it is done on Linux alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::launched_log::LaunchedLog;
use crate::limits::{EXEC_LINGER_MAX, EXEC_PIECE_BYTES, RELAUNCH_FIRST, RELAUNCH_MAX, RELAUNCH_STEADY, STOP_GRACE};
use crate::link::frames::Launched;
use crate::machine::exec::{Environment, Group, Started, feed, start, status_of};
use crate::machine::root::{Root, replace};
use crate::machine::{CallError, Command};

const PID_NAME: &str = "launched.pid";
/// The status that a shell gives of a program that it can not start.
const NOT_STARTED_STATUS: i32 = 127;
/// Orders that wait while a program is being ended.
const ORDERS_WAITING_MAX: usize = 16;

/// How fast a program is started again and ended.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The first pause before it is started again.
    pub relaunch_first: Duration,
    /// The longest pause.
    pub relaunch_max: Duration,
    /// For how long it must run for the pauses to begin again with the first.
    pub relaunch_steady: Duration,
    /// How long it has to end by itself.
    pub stop_grace: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { relaunch_first: RELAUNCH_FIRST, relaunch_max: RELAUNCH_MAX, relaunch_steady: RELAUNCH_STEADY, stop_grace: STOP_GRACE }
    }
}

enum Order {
    Launch { command: Command, started: oneshot::Sender<Result<(), CallError>> },
    Stop { ran: oneshot::Sender<bool> },
    Hold,
    Resume,
    End { ended: oneshot::Sender<()> },
}

/// Gives orders to the task that owns the program. When the last one is dropped, the program is killed.
#[derive(Debug, Clone)]
pub struct Supervisor {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<Launched>,
}

impl Supervisor {
    /// Starts the task, after it has ended what an agent that was killed left running in this root.
    pub async fn start(root: Arc<Root>, environment: Environment, pace: Pace) -> Self {
        end_leftover(&root, pace.stop_grace).await;
        let (orders, inbox) = mpsc::channel(ORDERS_WAITING_MAX);
        let (tell, state) = watch::channel(Launched::Nothing);
        let keeper = Keeper { root, environment, pace, tell, kept: None, held: false, ending: false };
        tokio::spawn(keeper.run(inbox));
        Self { orders, state }
    }

    /// How what was launched is, now and later.
    pub fn state(&self) -> watch::Receiver<Launched> {
        self.state.clone()
    }

    /// Ends what was launched, starts this and keeps it running.
    ///
    /// # Errors
    /// When it can not be started. Nothing is launched then.
    pub async fn launch(&self, command: Command) -> Result<(), CallError> {
        let (started, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Launch { command, started }).await;
        answer.await.unwrap_or_else(|_| Err(CallError::Other("the agent is ending".to_owned())))
    }

    /// Ends what was launched and keeps it ended; whether it ran.
    pub async fn stop(&self) -> bool {
        let (ran, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Stop { ran }).await;
        answer.await.unwrap_or(false)
    }

    /// Ends what was launched and keeps it ended, without waiting for that.
    pub async fn drain(&self) {
        let (ran, _) = oneshot::channel();
        let _ = self.orders.send(Order::Stop { ran }).await;
    }

    /// Starts nothing again until [`Supervisor::resume`] or [`Supervisor::launch`].
    pub async fn hold(&self) {
        let _ = self.orders.send(Order::Hold).await;
    }

    /// Starts again what ended meanwhile.
    pub async fn resume(&self) {
        let _ = self.orders.send(Order::Resume).await;
    }

    /// Ends what was launched, for good: nothing is launched any more.
    pub async fn end(&self) {
        let (ended, answer) = oneshot::channel();
        let _ = self.orders.send(Order::End { ended }).await;
        let _ = answer.await;
    }
}

struct Keeper {
    root: Arc<Root>,
    environment: Environment,
    pace: Pace,
    tell: watch::Sender<Launched>,
    kept: Option<Kept>,
    held: bool,
    ending: bool,
}

/// What was launched.
struct Kept {
    command: Command,
    restarts: u32,
    pause: Duration,
    now: Now,
}

enum Now {
    Running(Box<Running>),
    /// Ended by itself, and is due again then.
    Due {
        at: Instant,
        status: i32,
    },
}

struct Running {
    child: Child,
    group: Group,
    since: Instant,
    output: JoinHandle<()>,
}

enum Event {
    Order(Option<Order>),
    Exited(i32),
    Due,
}

impl Keeper {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let event = match self.kept.as_mut().map(|kept| &mut kept.now) {
                Some(Now::Running(running)) => tokio::select! {
                    order = orders.recv() => Event::Order(order),
                    status = running.child.wait() => Event::Exited(status.map_or(-1, status_of)),
                },
                Some(Now::Due { at, .. }) if !self.held => tokio::select! {
                    order = orders.recv() => Event::Order(order),
                    () = tokio::time::sleep_until(*at) => Event::Due,
                },
                _ => Event::Order(orders.recv().await),
            };
            match event {
                Event::Order(Some(order)) => self.obey(order).await,
                Event::Order(None) => return,
                Event::Exited(status) => self.exited(status).await,
                Event::Due => self.start_again().await,
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Launch { started, .. } if self.ending => {
                let _ = started.send(Err(CallError::Other("the agent is ending".to_owned())));
            }
            Order::Launch { command, started } => {
                self.stop().await;
                self.held = false;
                let _ = started.send(self.launch(command).await);
            }
            Order::Stop { ran } => {
                let _ = ran.send(self.stop().await);
            }
            Order::Hold => self.held = true,
            Order::Resume => self.held = false,
            Order::End { ended } => {
                self.ending = true;
                self.stop().await;
                let _ = ended.send(());
            }
        }
    }

    async fn launch(&mut self, command: Command) -> Result<(), CallError> {
        let running = self.started(&command).await?;
        tracing::info!(launched.pid = running.child.id(), "launched `{}`", command.program);
        self.kept = Some(Kept { command, restarts: 0, pause: self.pace.relaunch_first, now: Now::Running(running) });
        self.say();
        Ok(())
    }

    async fn start_again(&mut self) {
        let Some(mut kept) = self.kept.take() else { return };
        kept.restarts = kept.restarts.saturating_add(1);
        kept.now = match self.started(&kept.command).await {
            Ok(running) => {
                tracing::info!(
                    launched.pid = running.child.id(),
                    launched.restarts = kept.restarts,
                    "started `{}` again",
                    kept.command.program
                );
                Now::Running(running)
            }
            Err(error) => {
                tracing::warn!(launched.restarts = kept.restarts, "`{}` can not be started again: {error}", kept.command.program);
                let at = Instant::now() + kept.pause;
                kept.pause = self.longer(kept.pause);
                Now::Due { at, status: NOT_STARTED_STATUS }
            }
        };
        self.kept = Some(kept);
        self.say();
    }

    async fn exited(&mut self, status: i32) {
        let Some(Kept { command, restarts, pause, now }) = self.kept.take() else { return };
        let mut steady = false;
        if let Now::Running(running) = now {
            steady = running.since.elapsed() >= self.pace.relaunch_steady;
            self.clear_away(*running).await;
        }
        let pause = if steady { self.pace.relaunch_first } else { pause };
        tracing::warn!(launched.status = status, launched.held = self.held, "`{}` ended by itself", command.program);
        let now = Now::Due { at: Instant::now() + pause, status };
        self.kept = Some(Kept { command, restarts, pause: self.longer(pause), now });
        self.say();
    }

    fn longer(&self, pause: Duration) -> Duration {
        pause.saturating_mul(2).min(self.pace.relaunch_max)
    }

    /// Ends what runs: asks first, then kills. Whether anything ran.
    async fn stop(&mut self) -> bool {
        let Some(kept) = self.kept.take() else { return false };
        let ran = match kept.now {
            Now::Running(mut running) => {
                running.group.terminate();
                let deadline = Instant::now() + self.pace.stop_grace;
                if tokio::time::timeout_at(deadline, running.child.wait()).await.is_ok() {
                    running.group.gone(deadline).await;
                } else {
                    tracing::warn!("`{}` did not end within {:?} and is killed", kept.command.program, self.pace.stop_grace);
                }
                self.clear_away(*running).await;
                true
            }
            Now::Due { .. } => false,
        };
        self.say();
        ran
    }

    /// Kills what is left of a group, and takes in what it wrote.
    async fn clear_away(&self, Running { mut child, group, mut output, .. }: Running) {
        drop(group);
        // One that hangs in the kernel, on a dead disk say, can not be killed, and is not waited for.
        if tokio::time::timeout(self.pace.stop_grace, child.wait()).await.is_err() {
            tracing::error!("process {:?} can not be killed", child.id());
        }
        if tokio::time::timeout(EXEC_LINGER_MAX, &mut output).await.is_err() {
            // What left the group may keep the output open as long as it likes.
            output.abort();
        }
        let _ = self.root.state().remove_file(PID_NAME);
    }

    async fn started(&self, command: &Command) -> Result<Box<Running>, CallError> {
        let log = LaunchedLog::open(&self.root).map_err(|error| CallError::Other(format!("the log of what is launched: {error}")))?;
        let Started { mut child, group } = start(&self.root, &self.environment, command).await?;
        if let Some(pid) = child.id() {
            write_down(&self.root, pid);
        }
        let (stdin, input) = (child.stdin.take(), command.stdin.clone());
        let output = keep_output(child.stdout.take(), child.stderr.take(), log);
        let output = tokio::spawn(async move {
            tokio::join!(feed(stdin, &input), output);
        });
        Ok(Box::new(Running { child, group, since: Instant::now(), output }))
    }

    fn say(&self) {
        self.tell.send_replace(match &self.kept {
            None => Launched::Nothing,
            Some(Kept { restarts, now: Now::Running(running), .. }) => {
                Launched::Running { pid: running.child.id().unwrap_or(0), restarts: *restarts }
            }
            Some(Kept { restarts, now: Now::Due { at, status }, .. }) => {
                let wait = at.saturating_duration_since(Instant::now()).as_millis();
                Launched::Exited { status: *status, restarts: *restarts, again_in_ms: u64::try_from(wait).unwrap_or(u64::MAX) }
            }
        });
    }
}

async fn keep_output(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>, mut log: LaunchedLog) {
    let (Some(mut stdout), Some(mut stderr)) = (stdout, stderr) else { return };
    let mut out = Vec::with_capacity(EXEC_PIECE_BYTES);
    let mut err = Vec::with_capacity(EXEC_PIECE_BYTES);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            read = stdout.read_buf(&mut out), if out_open => {
                out_open = matches!(read, Ok(1..));
                log.write(&mut out).await;
            }
            read = stderr.read_buf(&mut err), if err_open => {
                err_open = matches!(read, Ok(1..));
                log.write(&mut err).await;
            }
        }
    }
}

/// What tells one process from every other: its id, when it began, and since which start of the machine that is counted.
fn identity(root: &Root, pid: u32) -> Option<String> {
    let text = |path: &str| String::from_utf8(root.read_file(path, 4096).ok()?).ok();
    let stat = text(&format!("/proc/{pid}/stat"))?;
    // The program's name is in parentheses and may hold anything; what follows its end begins with the third field.
    let (_, fields) = stat.rsplit_once(')')?;
    let began = fields.split_whitespace().nth(19)?;
    let boot = text("/proc/sys/kernel/random/boot_id")?;
    Some(format!("{pid} {began} {}\n", boot.trim()))
}

fn write_down(root: &Root, pid: u32) {
    let Some(identity) = identity(root, pid) else { return };
    if let Err(error) = replace(root.state(), Path::new(PID_NAME), identity.as_bytes(), 0o600) {
        tracing::warn!("`.muster/{PID_NAME}` can not be written; if this agent is killed, what it launched will be left running: {error}");
    }
}

/// Ends what an agent that was killed had launched from a root and left behind, on Linux; after `grace` by force.
pub async fn end_leftover(root: &Root, grace: Duration) {
    let Ok(text) = root.state().read_to_string(PID_NAME) else { return };
    let pid = text.split_whitespace().next().and_then(|pid| pid.parse::<u32>().ok());
    if let Some(pid) = pid.filter(|pid| identity(root, *pid).as_deref() == Some(text.as_str())) {
        tracing::warn!(launched.pid = pid, "ending process {pid}, which an agent that was killed had launched");
        let group = Group::led_by(pid);
        group.terminate();
        group.gone(Instant::now() + grace).await;
    }
    let _ = root.state().remove_file(PID_NAME);
}
