//! What whole modules meet at the gate: the journal, the log, and what they may not do.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use muster::journal::{Entry, Level};
use muster::policy::{LabelPolicy, parse_file};
use muster::sandbox::{Outcome, Verdict};

use crate::sandbox::{Witness, compiled, inputs, sandbox};

fn policy(grants: &str) -> LabelPolicy {
    let text = format!("[label.linux]\nteam = \"media\"\nmodule = \"base\"\n[label.linux.grants]\n{grants}");
    parse_file(&text).unwrap().into_values().next().unwrap()
}

#[tokio::test]
async fn a_module_that_is_granted_nothing_reads_nothing() {
    let link = Arc::new(Witness::default());
    let (inputs, records) = inputs(policy(""), link.clone());
    assert_eq!(sandbox().run(&compiled("read").await, inputs).await.verdict, Verdict::Provisioned);
    assert!(link.asked().is_empty());
    let lines = records.take().lines;
    assert!(lines.iter().any(|line| line.level == Level::Call && line.text.contains("`grants.read`")), "{lines:?}");
}

#[tokio::test]
async fn a_module_that_is_granted_a_file_reads_it() {
    let link = Arc::new(Witness::default());
    let (inputs, _) = inputs(policy("read = [\"/etc/*\"]\n"), link.clone());
    let verdict = sandbox().run(&compiled("read").await, inputs).await.verdict;
    assert_eq!(verdict, Verdict::RefusedNever { reason: "it was not denied".into() });
    assert_eq!(link.asked(), ["read /etc/shadow"]);
}

#[tokio::test]
async fn the_journal_of_a_run_has_each_call_before_its_answer() {
    let (inputs, records) = inputs(policy("read = [\"/etc\"]\n"), Arc::new(Witness::default()));
    let Outcome { verdict, counts, launch } = sandbox().run(&compiled("calls").await, inputs).await;
    assert_eq!((verdict, counts.calls, launch), (Verdict::Provisioned, 10, None));
    let taken = records.take();
    assert_eq!(taken.entries.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (0..21).collect::<Vec<i64>>());
    assert!(matches!(serde_json::from_str(&taken.entries[0].1).unwrap(), Entry::Began(began) if began.registration.name == "a1"));
    for pair in taken.entries[1..].chunks(2) {
        let [asked, answered] = [&pair[0].1, &pair[1].1].map(|entry| serde_json::from_str(entry).unwrap());
        assert!(matches!(asked, Entry::Asked { .. }) && matches!(answered, Entry::Answered { answered: Ok(_), .. }), "{pair:?}");
    }
    assert!(taken.lines.iter().all(|line| line.text == "exists /etc: true"), "{:?}", taken.lines);
}

#[tokio::test]
async fn a_run_waits_while_nobody_takes_what_it_records() {
    let text = "[label.linux]\nteam = \"media\"\nmodule = \"base\"\n[label.linux.limits]\ncpu_ms = 60000\ncalls = 10000\n[label.linux.grants]\nrun = [\"/bin/true\"]\n";
    let policy = parse_file(text).unwrap().into_values().next().unwrap();
    let (inputs, records) = inputs(policy, Arc::new(Witness::default()));
    let module = compiled("run-loop").await;
    let mut run = std::pin::pin!(sandbox().run(&module, inputs));
    let mut entries = 0;
    let outcome = loop {
        tokio::select! {
            outcome = &mut run => break outcome,
            () = records.gathered() => {
                let taken = records.take();
                assert!(taken.lines.len() + taken.entries.len() <= muster::limits::RECORDS_WAITING_MAX + 8);
                entries += taken.entries.len();
            }
        }
    };
    assert!(matches!(outcome.verdict, Verdict::OverLimit { .. }), "{:?}", outcome.verdict);
    entries += records.take().entries.len();
    assert!(entries >= 20_000, "{entries}");
}

#[tokio::test]
async fn the_example_module_of_another_language_runs_where_it_was_built() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests/configure.wasm");
    let Ok(bytes) = std::fs::read(&path) else {
        println!("skipped: {} was not built", path.display());
        return;
    };
    let module = sandbox().compile(Bytes::from(bytes)).await.unwrap();
    let (inputs, records) = inputs(policy(""), Arc::new(Witness::default()));
    let outcome = sandbox().run(&module, inputs).await;
    assert!(matches!(outcome.verdict, Verdict::RefusedNever { .. } | Verdict::Refused { .. }), "{:?}", outcome.verdict);
    assert!(records.take().lines.iter().any(|line| line.level == Level::Step));
}

#[tokio::test]
async fn the_example_module_is_denied_its_bundle_when_no_policy_names_it() {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools/tools.wasm")).unwrap();
    let module = sandbox().compile(Bytes::from(bytes)).await.unwrap();
    let (inputs, records) = inputs(policy(""), Arc::new(Witness::default()));
    let verdict = sandbox().run(&module, inputs).await.verdict;
    assert_eq!(verdict, Verdict::RefusedNever { reason: "the label's policy does not grant the bundle `tools`".into() });
    let lines = records.take().lines;
    assert!(lines.iter().any(|line| line.level == Level::Call && line.text.contains("`bundles`")), "{lines:?}");
}
