//! The product in one walk: an agent that is due, the releases of its labels, a run of each, the launch, and the state that came of it.
//!
//! At most one run goes on for an agent, and a bounded number for the server. A run holds the release it began with to its end. Its
//! verdict, its last records and the agent's new state are written in one transaction, so that no crash leaves a run without an end:
//! what is found unfinished at the next start is ended there and tried again.

mod boot;
mod builds;
mod command;
mod due;
mod launch;
mod outcome;
mod records;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::api::AgentState;
use crate::controller::nodes::{Closed, Nodes};
use crate::credential::new_id;
use crate::journal::{self, now_us};
use crate::limits::{LOOKS_AT_ONCE, STORE_RETRY};
use crate::link::Link;
use crate::machine::Command;
use crate::policy::placeholders::PlaceholderError;
use crate::roster::Roster;
use crate::roster::agent::{Agent, View};
use crate::sandbox::gate::Counts;
use crate::sandbox::{Outcome, Registration, RunInputs, Sandbox, Verdict};
use crate::shelf::{Ready, Release, Shelf};
use crate::store::agents::AgentRow;
use crate::store::runs::{RunEnd, RunRow};
use crate::store::secrets::Secrets;
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

use boot::FirstRun;
use launch::Launching;
use outcome::after;
use records::Following;

/// What provisioning takes.
pub struct Parts {
    /// Where runs are recorded.
    pub store: Store,
    /// The releases in force.
    pub shelf: Arc<Shelf>,
    /// The agents.
    pub roster: Arc<Roster>,
    /// The nodes that they have at controllers.
    pub nodes: Arc<Nodes>,
    /// Where modules run.
    pub sandbox: Arc<Sandbox>,
    /// What modules may hand on.
    pub secrets: Secrets,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What provisions agents.
pub struct Provision {
    store: Store,
    shelf: Arc<Shelf>,
    roster: Arc<Roster>,
    nodes: Arc<Nodes>,
    sandbox: Arc<Sandbox>,
    secrets: Secrets,
    metrics: Arc<Metrics>,
    slots: Semaphore,
    looking: Semaphore,
    following: Following,
}

/// The verdict's word of a run that has not ended.
pub const RUNNING: &str = "running";

impl Provision {
    /// Puts it together; `at_once` runs go on at a time.
    pub fn new(parts: Parts, at_once: u32) -> Self {
        let Parts { store, shelf, roster, nodes, sandbox, secrets, metrics } = parts;
        let (slots, looking) = (Semaphore::new(at_once as usize), Semaphore::new(LOOKS_AT_ONCE));
        Self { store, shelf, roster, nodes, sandbox, secrets, metrics, slots, looking, following: Following::default() }
    }

    /// Tells whoever follows a run's log when there is more of it; none if the run is not under way here.
    pub fn follow(&self, run: &str) -> Option<tokio::sync::watch::Receiver<()>> {
        self.following.follow(run)
    }

    /// Ends the runs that an earlier life of this server left unfinished; their agents are provisioned again when they are back.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recover(&self) -> Result<(), StoreError> {
        let reason = "the server was restarted during this run";
        for run in self.store.unfinished_runs().await? {
            let end = RunEnd {
                verdict: Verdict::LinkLost { reason: reason.into() }.word().into(),
                reason: Some(reason.into()),
                ended_us: now_us(),
                calls: 0,
                bytes_sent: 0,
                bytes_saved: 0,
                boot: None,
            };
            let (id, end) = (run.id.as_str(), &end);
            let agent = self.roster.by_name(&run.agent).filter(|agent| agent.id() == run.agent_id);
            match agent {
                Some(agent) => {
                    let change = |row: &mut AgentRow| {
                        if row.state == AgentState::Provisioning {
                            row.state = AgentState::Registered;
                            row.releases.clear();
                        }
                        format!("the server was restarted during run {id}")
                    };
                    let write = |row, cause: String| async move { self.store.end_run(id, end, &[], &[], Some((&row, &cause))).await };
                    self.roster.change_with(&agent, change, write).await?;
                }
                None => self.store.end_run(id, end, &[], &[], None).await?,
            }
        }
        for agent in self.roster.all() {
            let change = |row: &mut AgentRow| {
                (row.state == AgentState::Provisioning).then(|| {
                    row.state = AgentState::Registered;
                    row.releases.clear();
                    "the server was restarted while it was being provisioned".into()
                })
            };
            self.roster.change(&agent, change).await?;
        }
        Ok(())
    }

    /// Brings an agent to the releases of its labels, and launches what is to be launched. The door of its node is closed until then, and the
    /// place among the runs is held until the last of them.
    async fn bring(
        &self,
        agent: &Arc<Agent>,
        ending: &CancellationToken,
        work: Work,
        slot: SemaphorePermit<'_>,
        closed: Option<Closed>,
    ) -> Result<(), StoreError> {
        let Some(link) = agent.link() else {
            agent.want_session();
            return Ok(());
        };
        let others_before = agent.tries(work.releases.iter().map(|release| (release.label.clone(), release.number)).collect());
        let mut waited_since_us = now_us();
        let mut attempt = 1;
        let mut stopped = false;
        self.roster
            .change(agent, |row| {
                stopped = !matches!(row.state, AgentState::Registered | AgentState::Ready | AgentState::Failed);
                if stopped {
                    return None;
                }
                if row.state == AgentState::Registered {
                    waited_since_us = row.since_us;
                }
                row.state = AgentState::Provisioning;
                // What it holds from now on is what these runs bring it to: one that is cut off, or whose launch is, begins anew.
                row.releases.clear();
                row.retry_at_us = None;
                // The failures of other releases are not this one's.
                row.attempt = if others_before { 1 } else { row.attempt + 1 };
                attempt = u32::try_from(row.attempt).unwrap_or(u32::MAX);
                Some(work.cause)
            })
            .await?;
        if stopped {
            return Ok(());
        }
        // A link that is lost here makes the first run end so.
        let _ = link.hold().await;
        let mut launching = None;
        let last = work.releases.len();
        for (at, release) in work.releases.iter().enumerate() {
            let policy_launch = match policy_launch(release, &agent.view()) {
                Ok(launching) => launching,
                Err(error) => {
                    self.not_ready(agent, &format!("release {} of label `{}`: {error}", release.number, release.label)).await?;
                    let _ = link.resume().await;
                    return Ok(());
                }
            };
            // Whoever halted the agent between two runs is heard here.
            if ending.is_cancelled() {
                return Ok(());
            }
            let is_last = at + 1 == last;
            let (verdict, module_launch) =
                self.run_one(agent, &link, ending, release, attempt, is_last && launching.is_none() && policy_launch.is_none()).await?;
            if verdict != Verdict::Provisioned {
                let _ = link.resume().await;
                return Ok(());
            }
            launching = module_launch.map(Launching::Program).or(policy_launch).or(launching);
        }
        // What comes takes no processor of this machine, and may wait for others.
        drop(slot);
        if let Some(launching) = launching {
            self.launch(agent, &*link, ending, &launching, closed).await?;
        } else {
            // What ran for a controller is over when nothing is to run for one any more.
            if self.nodes.current(agent.id()).is_some() {
                let _ = link.stop().await;
                self.nodes.leave(agent.id(), None).await?;
            }
            let _ = link.resume().await;
        }
        if agent.state() == AgentState::Ready {
            self.metrics.ready_after(microseconds(now_us() - waited_since_us));
        }
        Ok(())
    }

    /// Runs one release for one agent, from the run's first row to its verdict.
    async fn run_one(
        &self,
        agent: &Arc<Agent>,
        link: &Arc<dyn Link>,
        ending: &CancellationToken,
        release: &Arc<Release>,
        attempt: u32,
        is_last: bool,
    ) -> Result<(Verdict, Option<Command>), StoreError> {
        let ready = match &release.ready {
            Ok(ready) => ready.clone(),
            Err(reason) => return self.not_ready(agent, reason).await,
        };
        let run = RunRow {
            id: new_id(),
            agent_id: agent.id().to_owned(),
            agent: agent.name().clone(),
            label: release.label.clone(),
            release: release.number,
            module: ready.module.digest(),
            attempt,
            verdict: RUNNING.into(),
            reason: None,
            began_us: now_us(),
            ended_us: None,
            calls: 0,
            bytes_sent: 0,
            bytes_saved: 0,
        };
        self.store.begin_run(&run).await?;
        self.metrics.runs_in_progress.inc();
        let (recorder, records) = journal::channel();
        let view = agent.view();
        let first = FirstRun::of(&view, &release.label);
        let inputs = self.inputs(view, link, release, &ready, attempt, recorder);
        let running = async {
            tokio::select! {
                outcome = self.sandbox.run(&ready.module, inputs) => outcome,
                () = ending.cancelled() => Outcome {
                    verdict: Verdict::LinkLost { reason: format!("the run was ended: {}", agent.view().row.reason) },
                    counts: Counts::default(),
                    launch: None,
                },
            }
        };
        let (outcome, rest) = self.record(&run.id, &records, running).await;
        let first = first.filter(|_| outcome.verdict == Verdict::Provisioned);
        let end = RunEnd {
            verdict: outcome.verdict.word().into(),
            reason: outcome.verdict.reason(),
            ended_us: now_us(),
            calls: outcome.counts.calls.into(),
            bytes_sent: outcome.counts.bytes_sent,
            bytes_saved: outcome.counts.bytes_saved,
            boot: first.as_ref().map(|first| first.boot(&release.label, outcome.counts.syncing)),
        };
        self.metrics.runs_in_progress.dec();
        self.metrics.bundle_bytes_sent.inc_by(end.bytes_sent);
        self.metrics.bundle_bytes_saved.inc_by(end.bytes_saved);
        self.metrics.run_ended(&release.label, outcome.verdict.word(), microseconds(end.ended_us - run.began_us));
        if let Some(first) = &first {
            self.metrics.booted(&release.label, first.image.as_deref(), end.bytes_sent, outcome.counts.syncing);
        }
        let is_last = is_last && outcome.launch.is_none();
        self.write_end(agent, release, &run.id, &outcome.verdict, is_last, &end, first, &rest).await;
        self.following.ended(&run.id);
        Ok((outcome.verdict, outcome.launch))
    }

    async fn not_ready(&self, agent: &Agent, reason: &str) -> Result<(Verdict, Option<Command>), StoreError> {
        self.roster
            .change(agent, |row| {
                (row.state == AgentState::Provisioning).then(|| {
                    row.state = AgentState::Failed;
                    reason.to_owned()
                })
            })
            .await?;
        Ok((Verdict::HostFault { reason: reason.to_owned() }, None))
    }

    fn inputs(
        &self,
        View { row, claims, .. }: View,
        link: &Arc<dyn Link>,
        release: &Release,
        ready: &Ready,
        attempt: u32,
        recorder: journal::Recorder,
    ) -> RunInputs {
        let registration = Registration {
            name: row.name.to_string(),
            label: release.label.to_string(),
            labels: row.labels.iter().map(ToString::to_string).collect(),
            executors: claims.executors,
            root: claims.root,
            os: claims.os,
            arch: claims.arch,
            image: claims.image,
            attributes: claims.attributes,
            attempt,
        };
        RunInputs {
            registration,
            policy: Arc::clone(&release.policy),
            bundles: BTreeMap::clone(&ready.bundles),
            secrets: Some(self.secrets.clone()),
            link: Arc::clone(link),
            recorder,
        }
    }

    /// Writes the end of a run with the agent's new state, and does not give up: a run without an end would hold its agent for ever.
    #[expect(clippy::too_many_arguments, reason = "all that one transaction writes")]
    async fn write_end(
        &self,
        agent: &Agent,
        release: &Release,
        run: &str,
        verdict: &Verdict,
        is_last: bool,
        end: &RunEnd,
        first: Option<FirstRun>,
        rest: &records::Rows,
    ) {
        for again in [false].into_iter().chain(std::iter::repeat(true)) {
            let change = |row: &mut AgentRow| {
                if let Some(first) = &first {
                    row.booted.clone_from(&first.booted);
                }
                after(row, release, run, verdict, is_last)
            };
            let write = |row, cause: String| async move {
                match self.store.end_run(run, end, &rest.log, &rest.journal, Some((&row, &cause))).await {
                    // It was written before, and the answer was lost.
                    Err(StoreError::Conflict(_)) if again => Ok(()),
                    written => written,
                }
            };
            match self.roster.change_with(agent, change, write).await {
                Ok(()) => return,
                Err(StoreError::Conflict(reason) | StoreError::Missing(reason)) => {
                    tracing::error!(run, reason, "the end of run {run} is not written: {reason}");
                    return;
                }
                Err(error) => tracing::error!(run, %error, "the end of run {run} could not be written; trying again"),
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
    }
}

/// What a release's policy says is to be launched for an agent.
fn policy_launch(release: &Arc<Release>, view: &View) -> Result<Option<Launching>, PlaceholderError> {
    let launch = &release.policy.launch;
    if launch.controller.is_some() {
        return Ok(Some(Launching::Node(Arc::clone(release))));
    }
    Ok(command::of_policy(launch.command.as_deref(), view)?.map(Launching::Program))
}

fn microseconds(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or_default())
}

/// What is to be done for one agent.
struct Work {
    releases: Vec<Arc<Release>>,
    cause: String,
}
