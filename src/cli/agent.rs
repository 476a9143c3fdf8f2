//! `muster agent`: what the fleet is like, and what to do with one of it.

use clap::builder::PossibleValuesParser;
use reqwest::Method;

use crate::api::{Act, Agent, AgentDetail, BakedState, Explanation, Run};
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::{CliError, HEADING, doing};
use crate::names::{AgentName, LabelName};

const STATES: [&str; 8] = ["registered", "provisioning", "ready", "failed", "draining", "lost", "gone", "quarantined"];

/// What `muster agent` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the agents
    Ls {
        /// Those that carry a label
        #[arg(long)]
        label: Option<LabelName>,
        /// Those in a state
        #[arg(long, value_parser = PossibleValuesParser::new(STATES))]
        state: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Tells everything about an agent, its history and its runs
    Show {
        /// Its name
        name: AgentName,
    },
    /// Says why an agent is not ready, or that it is
    Explain {
        /// Its name
        name: AgentName,
    },
    /// Provisions an agent again
    Provision(ActOn),
    /// Lets an agent take no more work
    Drain(ActOn),
    /// Stops an agent
    Quarantine(ActOn),
    /// Forgets an agent; its name is free
    Remove {
        /// Its name
        name: AgentName,
    },
}

/// An agent, and why something is done to it.
#[derive(Debug, clap::Args)]
pub(crate) struct ActOn {
    /// Its name
    name: AgentName,
    /// Why; kept in its history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Does it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Ls { label, state, limit } => {
            let query = [("label", label.map(|label| label.to_string())), ("state", state)];
            let agents: Vec<Agent> = client.list(&["agents"], &query, limit).await.map_err(doing("list the agents"))?;
            list(&agents, output)
        }
        Command::Show { name } => {
            let what = format!("show the agent {name}");
            let detail: AgentDetail = client.get(&["agents", name.as_str()], &[]).await.map_err(doing(what))?;
            if output.json() { output.value(&detail) } else { show(&detail, output) }
        }
        Command::Explain { name } => {
            let what = format!("explain the agent {name}");
            let told: Explanation = client.get(&["agents", name.as_str(), "explain"], &[]).await.map_err(doing(what))?;
            if output.json() { output.value(&told) } else { explain(&told, output) }
        }
        Command::Provision(on) => act("provision", on, client, output).await,
        Command::Drain(on) => act("drain", on, client, output).await,
        Command::Quarantine(on) => act("quarantine", on, client, output).await,
        Command::Remove { name } => {
            client.delete(&["agents", name.as_str()]).await.map_err(doing(format!("remove the agent {name}")))?;
            output.done(&serde_json::json!({ "removed": name }), &format!("removed {name}"))
        }
    }
}

async fn act(verb: &str, on: ActOn, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let path = ["agents", on.name.as_str(), verb];
    let body = Act { reason: on.reason };
    let agent: Agent = client.send(Method::POST, &path, &[], &body).await.map_err(doing(format!("{verb} the agent {}", on.name)))?;
    let because = if agent.reason.is_empty() { String::new() } else { format!(": {}", agent.reason) };
    output.done(&agent, &format!("{} is {}{because}", agent.name, agent.state.as_str()))
}

fn list(agents: &[Agent], output: &mut Output) -> Result<(), CliError> {
    output.listing(agents, ["NAME", "STATE", "SINCE", "LABELS", "RELEASES", "REASON"], |output, agent| {
        [
            agent.name.clone(),
            agent.state.as_str().into(),
            output.age(agent.since_us),
            agent.labels.join(","),
            releases(agent),
            agent.reason.clone(),
        ]
    })
}

fn show(detail: &AgentDetail, output: &mut Output) -> Result<(), CliError> {
    let AgentDetail { agent, events, runs, baked } = detail;
    output.fields(&[
        ("name", agent.name.clone()),
        ("id", agent.id.clone()),
        ("state", agent.state.as_str().into()),
        ("reason", agent.reason.clone()),
        ("since", output.moment(agent.since_us)),
        ("retried at", agent.retry_at_us.map(|at| output.moment(at)).unwrap_or_default()),
        ("last seen", output.moment(agent.last_seen_us)),
        ("registered", output.moment(agent.registered_us)),
        ("session", if agent.session { "open" } else { "none" }.into()),
        ("labels", agent.labels.join(",")),
        ("releases", releases(agent)),
        ("launched", agent.launched.clone().unwrap_or_default()),
        ("node", agent.node.as_ref().map(|node| format!("{} at {}: {}", node.name, node.controller, node.state)).unwrap_or_default()),
        ("executors", agent.executors.to_string()),
        ("root", agent.root.clone()),
        ("address", agent.address.clone().unwrap_or_default()),
        ("system", format!("{} {}", agent.os, agent.arch)),
        ("image", agent.image.clone().unwrap_or_default()),
    ])?;
    for (name, value) in &agent.attributes {
        output.fields(&[(&format!("attribute {name}"), value.clone())])?;
    }
    if !baked.is_empty() {
        output.line("")?;
        output.styled(HEADING, "what was baked into its image, and what it lacks of what its labels want")?;
        list_baked(baked, output)?;
    }
    if !events.is_empty() {
        output.line("")?;
        output.listing(events, ["AT", "STATE", "CAUSE"], |output, event| {
            [output.moment(event.at_us), event.state.as_str().into(), event.cause.clone()]
        })?;
    }
    if runs.is_empty() {
        return Ok(());
    }
    output.line("")?;
    list_runs(runs, output)
}

fn list_baked(baked: &[BakedState], output: &mut Output) -> Result<(), CliError> {
    output.listing(baked, ["BUNDLE", "BAKED", "WANTED", "FILES DIFFER", "TO SEND", "AT", "NOTE"], |output, state| {
        let none = || "-".to_owned();
        let note = match (&state.wanted, &state.unknown) {
            (_, Some(why)) => why.clone(),
            (None, None) => "no label wants it".into(),
            (Some(_), None) => state.labels.join(","),
        };
        [
            state.bundle.clone(),
            output.digest(&state.version),
            state.wanted.as_deref().map_or_else(none, |version| output.digest(version)),
            state.files.map_or_else(none, |files| files.to_string()),
            state.bytes.map_or_else(none, |bytes| output.bytes(bytes)),
            state.destination.clone(),
            note,
        ]
    })
}

/// Writes runs as a listing, wherever they come from.
pub(crate) fn list_runs(runs: &[Run], output: &mut Output) -> Result<(), CliError> {
    output.listing(runs, ["RUN", "AGENT", "LABEL", "RELEASE", "ATTEMPT", "VERDICT", "BEGAN", "TOOK", "REASON"], |output, run| {
        [
            run.id.clone(),
            run.agent.clone(),
            run.label.clone(),
            run.release.to_string(),
            run.attempt.to_string(),
            run.verdict.clone(),
            output.age(run.began_us),
            output.took(run.began_us, run.ended_us),
            run.reason.clone().unwrap_or_default(),
        ]
    })
}

fn explain(told: &Explanation, output: &mut Output) -> Result<(), CliError> {
    output.styled(HEADING, &told.summary)?;
    if !told.because.is_empty() {
        output.line("")?;
        output.styled(HEADING, "because")?;
    }
    for because in &told.because {
        match because.at_us {
            Some(at) => output.line(&format!("  {}  {}", output.moment(at), because.text))?,
            None => output.line(&format!("  {}", because.text))?,
        }
    }
    if !told.next.is_empty() {
        output.line("")?;
        output.styled(HEADING, "next")?;
    }
    for next in &told.next {
        output.line(&format!("  {next}"))?;
    }
    Ok(())
}

fn releases(agent: &Agent) -> String {
    let releases: Vec<String> = agent.releases.iter().map(|(label, release)| format!("{label}={release}")).collect();
    releases.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AgentEvent, AgentState, Because};
    use crate::cli::output::fixture::{NOW_US, output};

    fn agent() -> Agent {
        let text = format!(
            r#"{{"id":"1","name":"web-1","labels":["linux","large"],"state":"failed","reason":"the disk is full","since_us":{},
            "last_seen_us":0,"registered_us":0,"session":true,"releases":{{"linux":4}},"executors":2,"root":"/srv","os":"linux",
            "arch":"x86_64","attributes":{{"zone":"a"}}}}"#,
            NOW_US - 180_000_000
        );
        serde_json::from_str(&text).unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn agents_are_listed_with_their_age() {
        let (mut out, text) = output(false, true);
        list(&[agent()], &mut out).unwrap();
        let expected = ["NAME STATE SINCE LABELS RELEASES REASON", "web-1 failed 3m linux,large linux=4 the disk is full"];
        assert_eq!(words(&text.take()), expected);
    }

    #[test]
    fn an_agent_is_shown_with_its_history() {
        let (mut out, text) = output(false, false);
        let events = vec![AgentEvent { at_us: NOW_US, state: AgentState::Failed, cause: "the disk is full".into() }];
        show(&AgentDetail { agent: agent(), events, runs: Vec::new(), baked: Vec::new() }, &mut out).unwrap();
        let text = text.take();
        assert!(text.contains("state\tfailed\n") && text.contains("attribute zone\ta\n"), "{text}");
        assert!(text.ends_with("\n\n2026-01-01T00:00:00Z\tfailed\tthe disk is full\n"), "{text}");
        assert!(!text.contains("address"), "{text}");
    }

    #[test]
    fn what_was_baked_is_listed_with_what_it_lacks_or_why_that_is_not_known() {
        let state = BakedState {
            bundle: "tools".into(),
            version: "ab".repeat(32),
            destination: "/srv/tools".into(),
            wanted: Some("cd".repeat(32)),
            labels: vec!["linux".into(), "large".into()],
            files: Some(3),
            bytes: Some(1536),
            unknown: None,
        };
        let unknown = BakedState { files: None, bytes: None, unknown: Some("gone".into()), ..state.clone() };
        let unwanted = BakedState { wanted: None, labels: Vec::new(), files: None, bytes: None, ..state.clone() };
        let (mut out, text) = output(false, true);
        list_baked(&[state, unknown, unwanted], &mut out).unwrap();
        let expected = [
            "BUNDLE BAKED WANTED FILES DIFFER TO SEND AT NOTE",
            "tools abababababab cdcdcdcdcdcd 3 1.5 KiB /srv/tools linux,large",
            "tools abababababab cdcdcdcdcdcd - - /srv/tools gone",
            "tools abababababab - - - /srv/tools no label wants it",
        ];
        assert_eq!(words(&text.take()), expected);
    }

    #[test]
    fn an_explanation_reads_from_top_to_bottom() {
        let (mut out, text) = output(false, true);
        let told = Explanation {
            name: "web-1".into(),
            state: AgentState::Failed,
            summary: "the module refused: the disk is full".into(),
            because: vec![Because { at_us: Some(NOW_US), text: "run 7 ended".into() }, Because { at_us: None, text: "no retry".into() }],
            next: vec!["muster run logs 7".into()],
        };
        explain(&told, &mut out).unwrap();
        let expected = "the module refused: the disk is full\n\nbecause\n  2026-01-01 00:00:00  run 7 ended\n  no retry\n\n\
            next\n  muster run logs 7\n";
        assert_eq!(text.take(), expected);
    }

    #[test]
    fn every_state_can_be_asked_for() {
        for state in STATES {
            let state: AgentState = serde_json::from_value(state.into()).unwrap();
            assert!(STATES.contains(&state.as_str()));
        }
    }
}
