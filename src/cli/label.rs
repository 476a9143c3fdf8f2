//! `muster label`: what the server does for a label. Whatever takes effect is shown first.

mod edit;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Style};
use reqwest::Method;
use serde::Serialize;

use crate::api::{Applied, Asks, Label, LabelDetail, Release, Rollback, Swap};
use crate::cli::client::Client;
use crate::cli::output::{Output, counts};
use crate::cli::pinned::Pinned;
use crate::cli::{CliError, HEADING, doing, read_text};
use crate::names::{LabelName, ModuleName};
use crate::policy::{LabelPolicy, ModuleRef, differences, parse_file};

/// What `muster label` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Applies the policies of a file; shows what changes and asks before it takes effect
    Apply {
        /// The policy file
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
    /// Lists the labels
    Ls {
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Shows a label's policy in force, and what the images of its agents cost
    Show {
        /// The label
        label: LabelName,
    },
    /// Lists a label's releases, newest first
    History {
        /// The label
        label: LabelName,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Puts another module in force; shows what changes and asks before
    Swap {
        /// The label
        label: LabelName,
        /// The module; its newest version without a digest
        #[arg(long, value_name = "NAME[@DIGEST]")]
        module: Pinned<ModuleName>,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
    /// Opens the script of the label's module in an editor, shows what differs, and puts it in force after asking
    Edit {
        /// The label
        label: LabelName,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
    /// Puts an earlier release in force again; shows what changes and asks before
    Rollback {
        /// The label
        label: LabelName,
        /// Which; the one before the release in force unless said
        #[arg(long, value_name = "RELEASE", value_parser = clap::value_parser!(i64).range(1..))]
        to: Option<i64>,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Does it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Apply { file, yes } => {
            let policies =
                parse_file(&read_text(&file)?).map_err(|problem| CliError::failed(format!("read {}", file.display()), problem))?;
            let changes: Vec<Change<LabelPolicy>> = policies.into_iter().map(Change::apply).collect();
            Box::pin(change(changes, yes, client, output)).await
        }
        Command::Swap { label, module, yes } => {
            let digest = module.digest("modules", "digest", client).await?;
            Box::pin(change(vec![Change::swap(label, ModuleRef { name: module.name, digest })], yes, client, output)).await
        }
        Command::Edit { label, yes } => Box::pin(edit::run(label, yes, client, output)).await,
        Command::Rollback { label, to, yes } => {
            let body = Rollback { to };
            Box::pin(change(vec![Change { label, method: Method::POST, verb: Some("rollback"), body }], yes, client, output)).await
        }
        Command::Ls { limit } => {
            let labels: Vec<Label> = client.list(&["labels"], &[], limit).await.map_err(doing("list the labels"))?;
            output.listing(&labels, ["LABEL", "TEAM", "RELEASE", "SINCE", "MODULE", "AGENTS"], |output, label| {
                [
                    label.label.clone(),
                    label.team.clone(),
                    label.release.release.to_string(),
                    output.age(label.release.made_us),
                    module_of(&label.release, output),
                    counts(&label.agents),
                ]
            })
        }
        Command::Show { label } => {
            let what = format!("show the label {label}");
            let label: LabelDetail = client.get(&["labels", label.as_str()], &[]).await.map_err(doing(what))?;
            if output.json() { output.value(&label) } else { show(&label, output) }
        }
        Command::History { label, limit } => {
            let what = format!("list the releases of {label}");
            let releases: Vec<Release> = client.list(&["labels", label.as_str(), "releases"], &[], limit).await.map_err(doing(what))?;
            output.listing(&releases, ["RELEASE", "MADE", "BY", "HOW", "MODULE", "NOT GRANTED"], |output, release| {
                [
                    release.release.to_string(),
                    output.age(release.made_us),
                    release.made_by.clone(),
                    release.how.clone(),
                    module_of(release, output),
                    release.not_granted.join(", "),
                ]
            })
        }
    }
}

/// One change of one label's policy, to be shown and then to be made.
struct Change<B> {
    label: LabelName,
    method: Method,
    verb: Option<&'static str>,
    body: B,
}

impl Change<LabelPolicy> {
    fn apply((label, body): (LabelName, LabelPolicy)) -> Self {
        Self { label, method: Method::PUT, verb: None, body }
    }
}

impl Change<Swap> {
    fn swap(label: LabelName, module: ModuleRef) -> Self {
        Self { label, method: Method::POST, verb: Some("swap"), body: Swap { module: module.to_string() } }
    }
}

impl<B: Serialize> Change<B> {
    async fn send(&self, preview: bool, client: &Client) -> Result<Applied, CliError> {
        let path: Vec<&str> = ["labels", self.label.as_str()].into_iter().chain(self.verb).collect();
        let query = [("preview", Some(preview.to_string()))];
        let what = format!("{} the label {}", self.verb.unwrap_or("apply"), self.label);
        client.send(self.method.clone(), &path, &query, &self.body).await.map_err(doing(what))
    }
}

/// Shows what the changes come to, asks, and makes those that change anything.
async fn change<B: Serialize>(changes: Vec<Change<B>>, yes: bool, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let mut wanted = Vec::new();
    let mut unchanged = Vec::new();
    for change in changes {
        let preview = change.send(true, client).await?;
        show_changes(&preview, output)?;
        match preview.changes.is_empty() {
            true => unchanged.push(preview),
            false => wanted.push((change, preview)),
        }
    }
    if !wanted.is_empty() && !yes && !output.ask("Apply?")? {
        return Err(CliError::failed("go on", "the answer was no; nothing was changed"));
    }
    let mut applied = unchanged;
    for (change, preview) in wanted {
        let made = change.send(false, client).await?;
        // Between the two somebody else may have changed the label, or uploaded a newer version.
        if made.changes != preview.changes {
            output.note(Style::new(), "what took effect is not what was shown:")?;
            show_changes(&made, output)?;
        }
        if !output.json() {
            output.line(&in_force(&made))?;
        }
        applied.push(made);
    }
    if output.json() { output.value(&applied) } else { Ok(()) }
}

fn show_changes(applied: &Applied, output: &mut Output) -> Result<(), CliError> {
    let agents = if applied.agents == 1 { "1 agent".into() } else { format!("{} agents", applied.agents) };
    match applied.changes.is_empty() {
        true => output.note(Style::new(), &format!("{}: nothing changes", applied.label))?,
        false => output.note(HEADING, &format!("{}: {agents}", applied.label))?,
    }
    for line in &applied.changes {
        let style = match line.chars().next() {
            Some('+') => AnsiColor::Green.on_default(),
            Some('-') => AnsiColor::Red.on_default(),
            _ => AnsiColor::Yellow.on_default(),
        };
        output.note(style, &format!("  {line}"))?;
    }
    let lacking = |line| output.note(AnsiColor::Red.on_default().bold(), &format!("  ! the module asks for {line}, which is not granted"));
    applied.not_granted.iter().try_for_each(lacking)
}

fn in_force(applied: &Applied) -> String {
    let release = applied.release.map_or_else(|| "no release".into(), |release| format!("release {release}"));
    let previous = applied.previous.map(|previous| format!(", before it {previous}")).unwrap_or_default();
    format!("{}: {release} is in force{previous}", applied.label)
}

fn show(label: &LabelDetail, output: &mut Output) -> Result<(), CliError> {
    output.fields(&[
        ("label", label.label.clone()),
        ("team", label.team.clone()),
        ("release", label.release.release.to_string()),
        ("made", output.moment(label.release.made_us)),
        ("by", label.release.made_by.clone()),
        ("how", label.release.how.clone()),
        ("agents", counts(&label.agents)),
    ])?;
    output.line("")?;
    match serde_json::from_value::<LabelPolicy>(label.release.policy.clone()) {
        Ok(policy) => differences(None, &policy).iter().try_for_each(|line| output.line(line.strip_prefix("+ ").unwrap_or(line))),
        // A newer server's policy may have what this program does not know.
        Err(_) => output.value(&label.release.policy),
    }?;
    if let Some(asks) = &label.release.asks {
        output.line("")?;
        show_asks(asks, &label.release.not_granted, output)?;
    }
    if label.images.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let since = output.moment(label.images_since_us);
    output.styled(HEADING, &format!("what a boot was sent on average since {since} because its image lacked it, by image"))?;
    output.listing(&label.images, ["IMAGE", "BOOTS", "SENT", "TOOK", "LAST BOOT"], |output, image| {
        [
            image.image.clone().unwrap_or_else(|| "-".into()),
            image.boots.to_string(),
            output.bytes(image.bytes_per_boot),
            output.seconds(image.seconds_per_boot),
            output.age(image.last_boot_us),
        ]
    })
}

/// What a module asks for, held against what is granted.
fn show_asks(asks: &Asks, not_granted: &[String], output: &mut Output) -> Result<(), CliError> {
    output.styled(HEADING, "what the module asks for")?;
    for (kind, items) in asks.kinds() {
        for item in items {
            let line = format!("grants.{kind} {item}");
            match not_granted.contains(&line) {
                true => output.styled(AnsiColor::Red.on_default().bold(), &format!("{line}: not granted"))?,
                false => output.line(&format!("{line}: granted"))?,
            }
        }
    }
    Ok(())
}

fn module_of(release: &Release, output: &Output) -> String {
    let module = release.policy.get("module").and_then(serde_json::Value::as_str).unwrap_or_default();
    match module.split_once('@') {
        Some((name, digest)) => format!("{name}@{}", output.digest(digest)),
        None => module.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ImageCost;
    use crate::cli::output::fixture::{NOW_US, output};

    fn applied(changes: &[&str]) -> Applied {
        let changes = changes.iter().map(ToString::to_string).collect();
        Applied { label: "linux".into(), release: Some(5), previous: Some(4), changes, not_granted: Vec::new(), agents: 12 }
    }

    #[test]
    fn what_changes_is_shown_with_the_number_of_agents() {
        let (mut out, text) = output(false, true);
        show_changes(&applied(&["~ module: a → b", "+ grants.run /bin/sh: yes"]), &mut out).unwrap();
        assert_eq!(text.take(), "linux: 12 agents\n  ~ module: a → b\n  + grants.run /bin/sh: yes\n");
        show_changes(&applied(&[]), &mut out).unwrap();
        assert_eq!(text.take(), "linux: nothing changes\n");
        show_changes(&Applied { not_granted: vec!["grants.run /bin/df".into()], ..applied(&[]) }, &mut out).unwrap();
        assert!(text.take().ends_with("  ! the module asks for grants.run /bin/df, which is not granted\n"));
        assert_eq!(in_force(&applied(&[])), "linux: release 5 is in force, before it 4");
    }

    #[test]
    fn what_changes_stays_out_of_json() {
        let (mut out, text) = output(true, true);
        show_changes(&applied(&["~ module: a → b"]), &mut out).unwrap();
        assert_eq!(text.take(), "");
    }

    #[test]
    fn a_label_is_shown_with_its_policy_and_the_cost_of_its_images() {
        let policy = serde_json::json!({ "team": "media", "module": format!("base@sha256:{}", "ab".repeat(32)), "bundles": ["tools"] });
        let asks = Asks { run: vec!["/bin/df".into()], write: vec!["cache/**".into()], ..Asks::default() };
        let release = Release {
            label: "linux".into(),
            release: 4,
            made_us: NOW_US,
            made_by: "t1".into(),
            how: "applied".into(),
            policy,
            asks: Some(asks),
            not_granted: vec!["grants.run /bin/df".into()],
        };
        let agents = [("ready".to_owned(), 3), ("failed".to_owned(), 0)].into();
        let cost = |image: Option<&str>, boots, bytes_per_boot, seconds_per_boot| ImageCost {
            image: image.map(Into::into),
            boots,
            bytes_per_boot,
            seconds_per_boot,
            last_boot_us: NOW_US - 180_000_000,
        };
        let images = vec![cost(Some("ami-1"), 40, 3 << 29, 12.25), cost(None, 2, 0, 0.0305)];
        let (label, team, images_since_us) = ("linux".into(), "media".into(), NOW_US - 604_800_000_000);
        let label = LabelDetail { label, team, release, agents, images, images_since_us };
        let (mut out, text) = output(false, true);
        assert_eq!(module_of(&label.release, &out), "base@abababababab");
        show(&label, &mut out).unwrap();
        let text = text.take();
        assert!(text.contains("agents   3 ready\n") && text.contains("\nbundles tools: yes\n"), "{text}");
        let asked = "\nwhat the module asks for\ngrants.run /bin/df: not granted\ngrants.write cache/**: granted\n";
        assert!(text.contains(asked), "{text}");
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let told = [
            "what a boot was sent on average since 2025-12-25 00:00:00 because its image lacked it, by image",
            "IMAGE BOOTS SENT TOOK LAST BOOT",
            "ami-1 40 1.5 GiB 12s 3m",
            "- 2 0 B 30ms 3m",
        ];
        assert_eq!(lines[lines.len() - 4..], told);
        let (mut out, text) = output(false, false);
        show(&label, &mut out).unwrap();
        assert!(text.take().ends_with("ami-1\t40\t1610612736\t12.250000\t2025-12-31T23:57:00Z\n-\t2\t0\t0.030500\t2025-12-31T23:57:00Z\n"));
    }
}
