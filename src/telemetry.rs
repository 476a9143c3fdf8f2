//! What a server tells about itself: its log, on standard error, and its metrics.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::api::AgentState;
use crate::limits::{BOOT_IMAGES_COUNTED_MAX, BOOTS_KEPT};
use crate::names::{ControllerName, LabelName};

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line an event, for people.
    Compact,
    /// One JSON object an event, for programs.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can not be read.
    #[error("`{filter}` is no log filter")]
    Filter {
        /// The filter as it was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// There is a log in this process already.
    #[error("the log can not be set up")]
    Install(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sets up the log of this process, on standard error.
///
/// `filter` is as tracing-subscriber's `EnvFilter` reads it: `info`, `muster=debug,sqlx=warn`.
///
/// # Errors
/// When the filter can not be read, or when it was done already.
pub fn start_log(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.into(), source })?;
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Compact => log.compact().try_init(),
        LogFormat::Json => log.json().try_init(),
    }
    .map_err(TelemetryError::Install)
}

/// What came of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationOutcome {
    /// A new agent was admitted.
    Admitted,
    /// It was refused.
    Refused,
}

/// What came of compiling an uploaded module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompileOutcome {
    /// It was compiled.
    Compiled,
    /// It is no module that this server takes.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    label: String,
    verdict: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BootLabels {
    label: String,
    image: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DemandLabels {
    controller: String,
    label: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueuedLabels {
    controller: String,
    label: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ControllerLabels {
    controller: String,
}

impl DemandLabels {
    fn because(&self, reason: &'static str) -> QueuedLabels {
        QueuedLabels { controller: self.controller.clone(), label: self.label.clone(), reason }
    }
}

/// What waits for a label at its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandFigures {
    /// Builds that wait, by a word for why; the same words each time.
    pub queued: Vec<(&'static str, u64)>,
    /// Executors that build.
    pub busy: u64,
    /// Executors that could.
    pub idle: u64,
    /// How long the one that waits longest has waited for an executor.
    pub oldest: Duration,
    /// How many executors more would be used at once.
    pub should_grow: u64,
}

/// The gauges of what waits at controllers.
#[derive(Debug, Default)]
struct DemandGauges {
    queued: Family<QueuedLabels, Gauge>,
    busy: Family<DemandLabels, Gauge>,
    idle: Family<DemandLabels, Gauge>,
    oldest_seconds: Family<DemandLabels, Gauge>,
    should_grow: Family<DemandLabels, Gauge>,
    /// Why builds of a label wait, as far as it was told.
    reasons: Mutex<HashMap<DemandLabels, Vec<&'static str>>>,
}

/// What boots from an image that says none are counted under.
const NO_IMAGE: &str = "-";
/// What boots from images are counted under that are too many to be told apart.
const OTHER_IMAGES: &str = "other";

/// The metrics of one server.
///
/// Nothing that an agent or a module chooses becomes a metric's label, but for images, of which few are told apart: outcomes and states are
/// fixed words, and a label is one that has a policy. Several servers in one process have each their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    registrations: Family<OutcomeLabels, Counter>,
    /// Polls answered.
    pub polls: Counter,
    runs: Family<RunLabels, Counter>,
    run_seconds: Histogram,
    time_to_ready_seconds: Histogram,
    /// Bytes of bundle content that were sent to agents.
    pub bundle_bytes_sent: Counter,
    /// Bytes of bundle content that agents had already.
    pub bundle_bytes_saved: Counter,
    agents: Family<StateLabels, Gauge>,
    /// Sessions that are open.
    pub sessions: Gauge,
    /// Runs that go on.
    pub runs_in_progress: Gauge,
    compiles: Family<OutcomeLabels, Counter>,
    boots: Family<BootLabels, Counter>,
    boot_bytes: Family<BootLabels, Counter>,
    boot_seconds: Family<BootLabels, Counter<f64, AtomicU64>>,
    /// When there was last a boot of each image that is told apart, by label.
    booted: Mutex<HashMap<LabelName, HashMap<String, Instant>>>,
    demand: DemandGauges,
    controllers: Family<ControllerLabels, Gauge>,
}

impl Metrics {
    /// Metrics that count from zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("muster"),
            registrations: Family::default(),
            polls: Counter::default(),
            runs: Family::default(),
            run_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 12)),
            time_to_ready_seconds: Histogram::new(exponential_buckets(0.01, 4.0, 12)),
            bundle_bytes_sent: Counter::default(),
            bundle_bytes_saved: Counter::default(),
            agents: Family::default(),
            sessions: Gauge::default(),
            runs_in_progress: Gauge::default(),
            compiles: Family::default(),
            boots: Family::default(),
            boot_bytes: Family::default(),
            boot_seconds: Family::default(),
            booted: Mutex::default(),
            demand: DemandGauges::default(),
            controllers: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("registrations", "Registrations, by what came of them", metrics.registrations.clone());
        registry.register("polls", "Polls answered", metrics.polls.clone());
        registry.register("runs", "Runs that ended, by label and verdict", metrics.runs.clone());
        registry.register("run_seconds", "How long runs took", metrics.run_seconds.clone());
        let to_ready = metrics.time_to_ready_seconds.clone();
        registry.register("time_to_ready_seconds", "How long agents took to be ready, from when they began to wait for it", to_ready);
        registry.register("bundle_bytes_sent", "Bytes of bundle content sent to agents", metrics.bundle_bytes_sent.clone());
        registry.register("bundle_bytes_saved", "Bytes of bundle content that agents had already", metrics.bundle_bytes_saved.clone());
        registry.register("agents", "Agents, by state", metrics.agents.clone());
        registry.register("sessions", "Sessions that are open", metrics.sessions.clone());
        registry.register("runs_in_progress", "Runs that go on", metrics.runs_in_progress.clone());
        registry.register("compiles", "Modules compiled, by what came of it", metrics.compiles.clone());
        registry.register("boots", "Boots of agents, by label and image", metrics.boots.clone());
        registry.register("boot_bytes", "Bytes of bundle content that boots were sent, by label and image", metrics.boot_bytes.clone());
        registry.register("boot_seconds", "Seconds that bringing bundles took boots, by label and image", metrics.boot_seconds.clone());
        registry.register("controller_answers", "Whether a controller answered when it was last asked", metrics.controllers.clone());
        let demand = &metrics.demand;
        registry.register("demand_queued", "Builds that wait at a label's controller, by why", demand.queued.clone());
        registry.register("demand_busy_executors", "Executors of a label that build", demand.busy.clone());
        registry.register("demand_idle_executors", "Executors of a label that are free", demand.idle.clone());
        registry.register(
            "demand_oldest_seconds",
            "How long a label's build has waited for an executor at most",
            demand.oldest_seconds.clone(),
        );
        registry.register("demand_should_grow", "How many executors more would be used at once", demand.should_grow.clone());
        metrics
    }

    /// Counts a registration.
    pub fn registered(&self, outcome: RegistrationOutcome) {
        let outcome = match outcome {
            RegistrationOutcome::Admitted => "admitted",
            RegistrationOutcome::Refused => "refused",
        };
        self.registrations.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts a run that ended. `verdict` is the verdict's word, and `label` one that has a policy.
    pub fn run_ended(&self, label: &LabelName, verdict: &str, took: Duration) {
        self.runs.get_or_create(&RunLabels { label: label.to_string(), verdict: verdict.into() }).inc();
        self.run_seconds.observe(took.as_secs_f64());
    }

    /// Counts the first run of a label that succeeded after a boot: the bytes that it was sent, and how long bringing bundles took.
    ///
    /// For each label [`BOOT_IMAGES_COUNTED_MAX`] images are told apart, and others are counted as `other`. One of which there was no boot
    /// for [`BOOTS_KEPT`] makes room, and its figures are told no more.
    pub fn booted(&self, label: &LabelName, image: Option<&str>, bytes: u64, took: Duration) {
        self.booted_at(Instant::now(), label, image, bytes, took);
    }

    fn booted_at(&self, now: Instant, label: &LabelName, image: Option<&str>, bytes: u64, took: Duration) {
        let of = |image: &str| BootLabels { label: label.to_string(), image: image.to_owned() };
        let image = image.unwrap_or(NO_IMAGE);
        let mut booted = self.booted.lock().unwrap_or_else(PoisonError::into_inner);
        let images = booted.entry(label.clone()).or_default();
        if !images.contains_key(image) && images.len() >= BOOT_IMAGES_COUNTED_MAX {
            for (old, _) in images.extract_if(|_, last| now.duration_since(*last) > BOOTS_KEPT) {
                let old = of(&old);
                self.boots.remove(&old);
                self.boot_bytes.remove(&old);
                self.boot_seconds.remove(&old);
            }
        }
        let told_apart = images.contains_key(image) || images.len() < BOOT_IMAGES_COUNTED_MAX;
        if told_apart {
            images.insert(image.to_owned(), now);
        }
        let labels = of(if told_apart { image } else { OTHER_IMAGES });
        self.boots.get_or_create(&labels).inc();
        self.boot_bytes.get_or_create(&labels).inc_by(bytes);
        self.boot_seconds.get_or_create(&labels).inc_by(took.as_secs_f64());
    }

    /// Notes how long an agent took from registering to being ready.
    pub fn ready_after(&self, took: Duration) {
        self.time_to_ready_seconds.observe(took.as_secs_f64());
    }

    /// Says how many agents are in a state.
    pub fn set_agents(&self, state: AgentState, count: u64) {
        let state = match state {
            AgentState::Registered => "registered",
            AgentState::Provisioning => "provisioning",
            AgentState::Ready => "ready",
            AgentState::Failed => "failed",
            AgentState::Draining => "draining",
            AgentState::Lost => "lost",
            AgentState::Gone => "gone",
            AgentState::Quarantined => "quarantined",
        };
        self.agents.get_or_create(&StateLabels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a module that was compiled, or could not be.
    pub fn compiled(&self, outcome: CompileOutcome) {
        let outcome = match outcome {
            CompileOutcome::Compiled => "compiled",
            CompileOutcome::Refused => "refused",
        };
        self.compiles.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Says whether a controller answered.
    pub fn controller_answers(&self, controller: &ControllerName, answers: bool) {
        self.controllers.get_or_create(&ControllerLabels { controller: controller.to_string() }).set(answers.into());
    }

    /// Says what waits for a label at its controller.
    pub fn set_demand(&self, controller: &ControllerName, label: &LabelName, figures: &DemandFigures) {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (demand, of) = (&self.demand, DemandLabels { controller: controller.to_string(), label: label.to_string() });
        for (reason, queued) in &figures.queued {
            demand.queued.get_or_create(&of.because(reason)).set(count(*queued));
        }
        demand.busy.get_or_create(&of).set(count(figures.busy));
        demand.idle.get_or_create(&of).set(count(figures.idle));
        demand.oldest_seconds.get_or_create(&of).set(count(figures.oldest.as_secs()));
        demand.should_grow.get_or_create(&of).set(count(figures.should_grow));
        let reasons = figures.queued.iter().map(|(reason, _)| *reason).collect();
        demand.reasons.lock().unwrap_or_else(PoisonError::into_inner).insert(of, reasons);
    }

    /// Tells no more of what waits for a label: it is not known, and an old figure would be followed.
    pub fn forget_demand(&self, controller: &ControllerName, label: &LabelName) {
        let (demand, of) = (&self.demand, DemandLabels { controller: controller.to_string(), label: label.to_string() });
        let reasons = demand.reasons.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
        for reason in reasons.unwrap_or_default() {
            demand.queued.remove(&of.because(reason));
        }
        for family in [&demand.busy, &demand.idle, &demand.oldest_seconds, &demand.should_grow] {
            family.remove(&of);
        }
    }

    /// All metrics in the text format of `OpenMetrics`: `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail, and no metric here refuses to be written.
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("the metrics can not be written");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_under_its_name() {
        let metrics = Metrics::new();
        metrics.registered(RegistrationOutcome::Admitted);
        metrics.registered(RegistrationOutcome::Refused);
        metrics.polls.inc();
        metrics.run_ended(&"linux".parse().unwrap(), "provisioned", Duration::from_millis(3));
        metrics.ready_after(Duration::from_secs(2));
        metrics.bundle_bytes_sent.inc_by(10);
        metrics.bundle_bytes_saved.inc_by(90);
        metrics.set_agents(AgentState::Ready, 7);
        metrics.sessions.inc();
        metrics.runs_in_progress.set(2);
        metrics.compiled(CompileOutcome::Compiled);
        metrics.booted(&"linux".parse().unwrap(), Some("ami-1"), 5, Duration::from_millis(500));
        metrics.booted(&"linux".parse().unwrap(), None, 7, Duration::from_millis(250));
        let text = metrics.encode();
        for line in [
            "muster_registrations_total{outcome=\"admitted\"} 1",
            "muster_registrations_total{outcome=\"refused\"} 1",
            "muster_polls_total 1",
            "muster_runs_total{label=\"linux\",verdict=\"provisioned\"} 1",
            "muster_run_seconds_count 1",
            "muster_run_seconds_bucket{le=\"0.004\"} 1",
            "muster_time_to_ready_seconds_sum 2.0",
            "muster_bundle_bytes_sent_total 10",
            "muster_bundle_bytes_saved_total 90",
            "muster_agents{state=\"ready\"} 7",
            "muster_sessions 1",
            "muster_runs_in_progress 2",
            "muster_compiles_total{outcome=\"compiled\"} 1",
            "muster_boots_total{label=\"linux\",image=\"ami-1\"} 1",
            "muster_boot_bytes_total{label=\"linux\",image=\"-\"} 7",
            "muster_boot_seconds_total{label=\"linux\",image=\"ami-1\"} 0.5",
            "# EOF",
        ] {
            assert!(text.lines().any(|other| other == line), "no line `{line}` in:\n{text}");
        }
    }

    #[test]
    fn images_beyond_the_bound_are_counted_together_and_what_an_agent_calls_one_stays_a_value() {
        let metrics = Metrics::new();
        let (linux, mac) = ("linux".parse().unwrap(), "mac".parse().unwrap());
        for at in 0..BOOT_IMAGES_COUNTED_MAX + 3 {
            metrics.booted(&linux, Some(&format!("ami-{at}")), 1, Duration::ZERO);
        }
        metrics.booted(&linux, Some("ami-0"), 1, Duration::ZERO);
        metrics.booted(&mac, Some("a\"} 9\n\\"), 1, Duration::ZERO);
        let text = metrics.encode();
        let counts: Vec<_> = text.lines().filter(|line| line.starts_with("muster_boots_total{")).collect();
        assert_eq!(counts.len(), BOOT_IMAGES_COUNTED_MAX + 2, "{counts:#?}");
        for line in [
            "muster_boots_total{label=\"linux\",image=\"ami-0\"} 2",
            "muster_boots_total{label=\"linux\",image=\"other\"} 3",
            "muster_boots_total{label=\"mac\",image=\"a\\\"} 9\\n\\\\\"} 1",
        ] {
            assert!(counts.contains(&line), "no line `{line}` in {counts:#?}");
        }
    }

    #[test]
    fn an_image_that_nothing_boots_from_any_more_makes_room_for_another() {
        let metrics = Metrics::new();
        let (linux, begin) = ("linux".parse().unwrap(), Instant::now());
        for at in 0..BOOT_IMAGES_COUNTED_MAX {
            metrics.booted_at(begin, &linux, Some(&format!("ami-{at}")), 1, Duration::ZERO);
        }
        metrics.booted_at(begin + BOOTS_KEPT / 2, &linux, Some("ami-0"), 1, Duration::ZERO);
        metrics.booted_at(begin + BOOTS_KEPT * 5 / 4, &linux, Some("new"), 1, Duration::ZERO);
        let text = metrics.encode();
        for name in ["boots", "boot_bytes", "boot_seconds"] {
            let begin = format!("muster_{name}_total{{label=\"linux\",image=");
            let mut images: Vec<_> =
                text.lines().filter_map(|line| line.strip_prefix(&begin)?.split_once('}')).map(|(image, _)| image).collect();
            images.sort_unstable();
            assert_eq!(images, ["\"ami-0\"", "\"new\""], "{name}");
        }
    }

    #[test]
    fn what_waits_is_told_until_it_is_not_known_any_more() {
        let metrics = Metrics::new();
        let (main, linux) = ("main".parse().unwrap(), "linux".parse().unwrap());
        let queued = vec![("busy", 3), ("blocked", 0)];
        metrics.set_demand(&main, &linux, &DemandFigures { queued, busy: 2, idle: 1, oldest: Duration::from_secs(90), should_grow: 2 });
        metrics.controller_answers(&main, true);
        let text = metrics.encode();
        for line in [
            "muster_demand_queued{controller=\"main\",label=\"linux\",reason=\"busy\"} 3",
            "muster_demand_queued{controller=\"main\",label=\"linux\",reason=\"blocked\"} 0",
            "muster_demand_busy_executors{controller=\"main\",label=\"linux\"} 2",
            "muster_demand_idle_executors{controller=\"main\",label=\"linux\"} 1",
            "muster_demand_oldest_seconds{controller=\"main\",label=\"linux\"} 90",
            "muster_demand_should_grow{controller=\"main\",label=\"linux\"} 2",
            "muster_controller_answers{controller=\"main\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "no line `{line}` in:\n{text}");
        }
        metrics.forget_demand(&main, &linux);
        metrics.controller_answers(&main, false);
        let text = metrics.encode();
        assert!(!text.contains("linux") && text.contains("muster_controller_answers{controller=\"main\"} 0"), "{text}");
    }

    #[test]
    fn two_servers_in_one_process_count_apart() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.polls.inc();
        assert_eq!((one.polls.get(), two.polls.get()), (1, 0));
    }

    #[test]
    fn a_filter_that_can_not_be_read_is_named() {
        let error = start_log("muster=loud", LogFormat::Compact).unwrap_err();
        assert_eq!(error.to_string(), "`muster=loud` is no log filter");
    }
}
