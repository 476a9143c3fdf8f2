//! The store: each check runs on SQLite and on PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use muster::api::{AgentState, Asks, TokenKind};
use muster::bits::contents::{Bundle, Packing};
use muster::bits::manifest::{Entry, Kind, Manifest};
use muster::bits::pack::Packer;
use muster::limits::{BOOT_IMAGES_SHOWN_MAX, CONTENTS_READERS_MAX, SECRET_BYTES_MAX};
use muster::names::Digest;
use muster::store::agents::AgentRow;
use muster::store::blobs::{BlobError, Blobs};
use muster::store::boots::{Boot, Booted, ImageRow};
use muster::store::bundles::BundleRow;
use muster::store::clear::{Cleared, Kept};
use muster::store::contents::{Gone, Place};
use muster::store::labels::NewRelease;
use muster::store::modules::ModuleRow;
use muster::store::nodes::{NodePlan, NodeRow};
use muster::store::runs::{LogRow, RunEnd, RunFilter, RunRow};
use muster::store::secrets::{SecretError, Secrets};
use muster::store::segments::{SegmentError, Segments, Sending};
use muster::store::tokens::TokenRow;
use muster::store::{PageAsked, Store, StoreError};

use crate::postgres::Postgres;

macro_rules! on_each_database {
    ($($check:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $check() {
                let directory = tempfile::tempdir().unwrap();
                super::$check(&format!("sqlite://{}/muster.db", directory.path().display())).await;
            })*
        }

        // One test for all, as every test is a process and every process needs a cluster of its own.
        #[tokio::test]
        async fn every_check_holds_on_postgresql() {
            let Some(postgres) = Postgres::start() else { return };
            $(
                println!("{}", stringify!($check));
                $check(&postgres.database()).await;
            )*
        }
    };
}

on_each_database!(
    a_token_is_kept_and_revoked_once,
    pages_cover_every_row_once,
    a_cursor_of_nothing_is_refused,
    an_agent_is_kept_whole_with_its_events,
    a_name_has_one_living_agent,
    of_two_registrations_at_once_one_wins,
    an_agent_that_is_gone_stays_gone,
    heartbeats_are_written_and_never_go_back,
    a_module_name_belongs_to_its_first_team,
    a_version_that_comes_again_is_the_newest,
    a_release_follows_the_one_that_was_expected,
    of_two_applies_at_once_one_wins,
    a_run_ends_once_with_its_records_and_its_agent,
    a_run_that_can_not_end_leaves_nothing,
    runs_are_listed_by_agent_label_and_team,
    a_nul_does_not_keep_a_run_from_ending,
    what_is_beyond_the_limits_is_cleared,
    contents_beside_a_journal_are_read_again_and_go_with_their_run,
    boots_are_summed_up_by_image_and_the_costliest_is_first,
    boots_that_are_old_or_too_many_are_cleared,
    a_version_that_is_there_is_opened_again,
    an_agent_has_one_node_at_a_controller_and_a_name_one_agent,
    what_is_lost_and_what_is_not_known_any_more_is_forgotten,
);

async fn an_agent_has_one_node_at_a_controller_and_a_name_one_agent(url: &str) {
    let store = Store::open(url).await.unwrap();
    let node = |controller: &str, name: &str, agent_id: &str| NodeRow {
        controller: controller.parse().unwrap(),
        name: name.into(),
        agent_id: agent_id.into(),
        agent: "web-1".parse().unwrap(),
        label: "linux".parse().unwrap(),
        plan: NodePlan { labels: vec!["linux".parse().unwrap()], executors: 2, instance: Some("first".into()), ..NodePlan::default() },
        began_us: 1,
        made_us: None,
        leaving_us: None,
    };
    let first = node("one", "n1", "a1");
    store.insert_node(&first).await.unwrap();
    store.insert_node(&node("two", "n1", "a1")).await.unwrap();
    for taken in [node("one", "n1", "a2"), node("one", "n2", "a1")] {
        assert!(matches!(store.insert_node(&taken).await, Err(StoreError::Conflict(_))));
    }
    let changed = NodeRow { agent_id: "a3".into(), made_us: Some(5), leaving_us: Some(7), ..first.clone() };
    store.update_node(&changed).await.unwrap();
    let mut kept = store.nodes().await.unwrap();
    kept.sort_by(|one, other| one.controller.cmp(&other.controller));
    assert_eq!(kept, [changed.clone(), node("two", "n1", "a1")]);
    store.insert_node(&node("one", "n2", "a1")).await.unwrap();
    assert!(matches!(store.update_node(&NodeRow { agent_id: "a1".into(), ..changed.clone() }).await, Err(StoreError::Conflict(_))));
    store.delete_node(&changed.controller, "n1").await.unwrap();
    store.delete_node(&changed.controller, "n1").await.unwrap();
    assert!(matches!(store.update_node(&changed).await, Err(StoreError::Missing(_))));
    assert_eq!(store.nodes().await.unwrap().len(), 2);
}

fn page(limit: u32) -> PageAsked {
    PageAsked { cursor: None, limit }
}

fn agent(id: &str, name: &str) -> AgentRow {
    AgentRow {
        id: id.into(),
        name: name.parse().unwrap(),
        credential_hash: "c0ffee".into(),
        token_id: "token-1".into(),
        team: Some("media".parse().unwrap()),
        claims: r#"{"executors":2}"#.into(),
        labels: vec!["linux".parse().unwrap(), "large".parse().unwrap()],
        state: AgentState::Registered,
        reason: "registered".into(),
        since_us: 10,
        retry_at_us: None,
        drained: Some("by an admin".into()),
        attempt: 0,
        releases: BTreeMap::from([("linux".parse().unwrap(), 3)]),
        instance: Some("first".into()),
        booted: Booted { instance: Some("first".into()), labels: BTreeSet::from(["linux".parse().unwrap()]) },
        registration_key_hash: None,
        last_seen_us: 10,
        registered_us: 10,
    }
}

fn token(id: &str) -> TokenRow {
    TokenRow {
        id: id.into(),
        kind: TokenKind::Join,
        team: None,
        labels: vec!["linux".parse().unwrap()],
        secret_hash: "abc".into(),
        made_us: 5,
        revoked_us: None,
    }
}

fn module(name: &str, team: &str, content: &str) -> ModuleRow {
    ModuleRow {
        digest: Digest::of(content.as_bytes()),
        name: name.parse().unwrap(),
        team: team.parse().unwrap(),
        size_bytes: content.len() as u64,
        world: "muster:provision/provisioner".into(),
        imports: vec!["muster:provision/agent".into()],
        language: Some("rust".into()),
        asks: Some(Asks { run: vec!["/bin/df".into()], ..Asks::default() }),
        uploaded_us: 7,
    }
}

fn bundle(name: &str, team: &str, content: &str) -> BundleRow {
    BundleRow {
        name: name.parse().unwrap(),
        version: Digest::of(content.as_bytes()),
        team: team.parse().unwrap(),
        files: 3,
        bytes: 1 << 40,
        pushed_us: 7,
    }
}

fn release(label: &str, how: &str) -> NewRelease {
    NewRelease {
        label: label.parse().unwrap(),
        team: "media".parse().unwrap(),
        policy: "{}".into(),
        module: Digest::of(how.as_bytes()),
        how: how.into(),
        made_by: "token-1".into(),
        made_us: 1,
    }
}

fn run(id: &str, agent: &AgentRow, label: &str) -> RunRow {
    RunRow {
        id: id.into(),
        agent_id: agent.id.clone(),
        agent: agent.name.clone(),
        label: label.parse().unwrap(),
        release: 3,
        module: Digest::of(b"module"),
        attempt: 1,
        verdict: "running".into(),
        reason: None,
        began_us: 100,
        ended_us: None,
        calls: 0,
        bytes_sent: 0,
        bytes_saved: 0,
    }
}

fn end(ended_us: i64) -> RunEnd {
    RunEnd { verdict: "provisioned".into(), reason: Some("done".into()), ended_us, calls: 4, bytes_sent: 5, bytes_saved: 6, boot: None }
}

const KEPT: Kept = Kept {
    runs_per_agent: 9,
    records_us: 5000,
    events_per_agent: 99,
    gone_us: 5000,
    boots_us: 5000,
    boots_per_label: 9,
    contents_bytes: 1 << 20,
};

fn log(seqs: std::ops::Range<i64>) -> Vec<LogRow> {
    seqs.map(|seq| LogRow { seq, at_us: 100 + seq, level: "info".into(), text: format!("line {seq}") }).collect()
}

fn journal(seqs: std::ops::Range<i64>) -> Vec<(i64, String)> {
    seqs.map(|seq| (seq, format!("{{\"call\":{seq}}}"))).collect()
}

async fn reopened(store: Store, url: &str) -> Store {
    store.close().await;
    Store::open(url).await.unwrap()
}

async fn a_token_is_kept_and_revoked_once(url: &str) {
    let store = Store::open(url).await.unwrap();
    store.ping().await.unwrap();
    store.insert_token(&token("a")).await.unwrap();
    assert!(matches!(store.insert_token(&token("a")).await, Err(StoreError::Conflict(_))));
    let store = reopened(store, url).await;
    assert_eq!(store.token("a").await.unwrap(), Some(token("a")));
    assert_eq!(store.token("b").await.unwrap(), None);
    assert!(store.revoke_token("a", 9).await.unwrap());
    assert!(!store.revoke_token("a", 10).await.unwrap());
    assert!(!store.revoke_token("b", 10).await.unwrap());
    let store = reopened(store, url).await;
    assert_eq!(store.token("a").await.unwrap().unwrap().revoked_us, Some(9));
    store.close().await;
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
}

async fn pages_cover_every_row_once(url: &str) {
    macro_rules! all {
        ($list:expr, $key:expr) => {{
            let mut keys = Vec::new();
            let mut asked = page(3);
            loop {
                let paged = $list(asked.clone()).await.unwrap();
                assert!(paged.items.len() <= 3);
                keys.extend(paged.items.iter().map($key));
                match paged.next {
                    Some(next) => asked.cursor = Some(next),
                    None => break keys,
                }
            }
        }};
    }
    let store = Store::open(url).await.unwrap();
    // Ids and names at once.
    let names: Vec<String> = (0..9).map(|at| format!("{at:032x}")).collect();
    let owner = agent("owner", "owner");
    store.insert_agent(&owner, "first", None).await.unwrap();
    let mut expected = None;
    for name in &names {
        store.insert_token(&token(name)).await.unwrap();
        store.insert_agent(&AgentRow { state: AgentState::Gone, ..agent(name, name) }, "gone", None).await.unwrap();
        store.insert_module(&module(name, "media", "same")).await.unwrap();
        store.insert_module(&module("one", "games", name)).await.unwrap();
        store.insert_bundle(&bundle(name, "media", "same")).await.unwrap();
        store.insert_bundle(&bundle("one", "games", name)).await.unwrap();
        expected = Some(store.add_release(&release("linux", name), expected).await.unwrap());
        store.begin_run(&run(name, &owner, "linux")).await.unwrap();
    }
    let falling: Vec<String> = names.iter().rev().cloned().collect();
    assert_eq!(all!(async |page| store.tokens(&page).await, |row| row.id.clone()), falling);
    assert_eq!(all!(async |page| store.agents_gone(&page).await, |row| row.id.clone()), falling);
    let team = "media".parse().unwrap();
    assert_eq!(all!(async |page| store.modules(Some(&team), &page).await, |row| row.name.to_string()), names);
    assert_eq!(all!(async |page| store.modules(None, &page).await, |row| row.name.to_string()).len(), 10);
    assert_eq!(all!(async |page| store.bundles(Some(&team), &page).await, |row| row.name.to_string()), names);
    let digests: Vec<Digest> = falling.iter().map(|name| Digest::of(name.as_bytes())).collect();
    let one = "one".parse().unwrap();
    assert_eq!(all!(async |page| store.module_versions(&one, &page).await, |row| row.digest), digests);
    let one = "one".parse().unwrap();
    assert_eq!(all!(async |page| store.bundle_versions(&one, &page).await, |row| row.version), digests);
    let label = "linux".parse().unwrap();
    assert_eq!(all!(async |page| store.releases(&label, &page).await, |row| row.how.clone()), falling);
    assert_eq!(all!(async |page| store.runs(&RunFilter::default(), &page).await, |row| row.id.clone()), falling);
}

async fn a_cursor_of_nothing_is_refused(url: &str) {
    let store = Store::open(url).await.unwrap();
    let asked = |cursor: &str| PageAsked { cursor: Some(cursor.into()), limit: 10 };
    for cursor in ["", "ä", "a b", "a\0", "zz", &"x".repeat(32), &"a".repeat(64)] {
        assert!(matches!(store.tokens(&asked(cursor)).await, Err(StoreError::Cursor)), "{cursor:?} was taken");
        assert!(matches!(store.runs(&RunFilter::default(), &asked(cursor)).await, Err(StoreError::Cursor)));
    }
    for cursor in ["", "x", "-1", "0", "99999999999999999999"] {
        let name = "a".parse().unwrap();
        assert!(matches!(store.releases(&name, &asked(cursor)).await, Err(StoreError::Cursor)), "{cursor:?} was taken");
    }
}

async fn an_agent_is_kept_whole_with_its_events(url: &str) {
    let store = Store::open(url).await.unwrap();
    let first = agent("a1", "builder");
    store.insert_agent(&first, "first contact", None).await.unwrap();
    let store = reopened(store, url).await;
    assert_eq!(store.living_agents().await.unwrap(), std::slice::from_ref(&first));
    let failed = AgentRow {
        state: AgentState::Failed,
        reason: "no disk".into(),
        since_us: 20,
        retry_at_us: Some(99),
        attempt: 2,
        team: None,
        ..first
    };
    store.update_agent(&failed, Some("module said no")).await.unwrap();
    let seen = AgentRow { last_seen_us: 33, ..failed };
    store.update_agent(&seen, None).await.unwrap();
    let store = reopened(store, url).await;
    assert_eq!(store.agent_by_name(&seen.name).await.unwrap(), Some(seen));
    let events = store.agent_events("a1", 10).await.unwrap();
    let events: Vec<_> = events.iter().map(|event| (event.at_us, event.state, event.cause.as_str())).collect();
    assert_eq!(events, [(20, AgentState::Failed, "module said no"), (10, AgentState::Registered, "first contact")]);
    assert_eq!(store.agent_events("a1", 1).await.unwrap().len(), 1);
}

async fn a_name_has_one_living_agent(url: &str) {
    let store = Store::open(url).await.unwrap();
    store.insert_agent(&agent("a1", "builder"), "first", None).await.unwrap();
    assert!(matches!(store.insert_agent(&agent("a2", "builder"), "second", None).await, Err(StoreError::Conflict(_))));
    assert!(store.agent_events("a2", 10).await.unwrap().is_empty());
    let second = AgentRow { since_us: 50, ..agent("a2", "builder") };
    store.insert_agent(&second, "second", Some("a1")).await.unwrap();
    assert_eq!(store.living_agents().await.unwrap(), std::slice::from_ref(&second));
    assert_eq!(store.agent_by_name(&second.name).await.unwrap().unwrap().id, "a2");
    let events = store.agent_events("a1", 10).await.unwrap();
    assert_eq!((events[0].state, events[0].at_us, events.len()), (AgentState::Gone, 50, 2));
    let third = store.insert_agent(&agent("a3", "builder"), "third", Some("a1")).await;
    assert!(matches!(third, Err(StoreError::Conflict(_))), "a1 was replaced twice");
    store.update_agent(&AgentRow { state: AgentState::Gone, since_us: 60, ..second.clone() }, Some("removed")).await.unwrap();
    assert_eq!(store.agent_by_name(&second.name).await.unwrap().unwrap().id, "a2");
    assert!(store.living_agents().await.unwrap().is_empty());
}

async fn of_two_registrations_at_once_one_wins(url: &str) {
    let store = Store::open(url).await.unwrap();
    let (one, two) = (agent("a1", "builder"), agent("a2", "builder"));
    let (first, second) = tokio::join!(store.insert_agent(&one, "one", None), store.insert_agent(&two, "two", None));
    assert_eq!([&first, &second].iter().filter(|result| result.is_ok()).count(), 1);
    assert!([first, second].into_iter().any(|result| matches!(result, Err(StoreError::Conflict(_)))));
    assert_eq!(store.living_agents().await.unwrap().len(), 1);
}

async fn an_agent_that_is_gone_stays_gone(url: &str) {
    let store = Store::open(url).await.unwrap();
    let living = agent("a1", "builder");
    assert!(matches!(store.update_agent(&living, None).await, Err(StoreError::Missing(_))));
    store.insert_agent(&living, "first", None).await.unwrap();
    store.update_agent(&AgentRow { state: AgentState::Gone, ..living.clone() }, Some("reaped")).await.unwrap();
    assert!(matches!(store.update_agent(&living, Some("back")).await, Err(StoreError::Missing(_))));
    assert_eq!(store.agent_events("a1", 10).await.unwrap().len(), 2);
}

async fn heartbeats_are_written_and_never_go_back(url: &str) {
    let store = Store::open(url).await.unwrap();
    for at in 0..3 {
        store.insert_agent(&agent(&format!("a{at}"), &format!("builder{at}")), "first", None).await.unwrap();
    }
    let mut seen: Vec<(String, i64)> = (100..6000).map(|at| (format!("a{at}"), at)).collect();
    seen.extend([("a2".into(), 70), ("a0".into(), 50), ("a1".into(), 1)]);
    store.update_agents_seen(&seen).await.unwrap();
    store.update_agents_seen(&[]).await.unwrap();
    let store = reopened(store, url).await;
    let seen: BTreeMap<_, _> = store.living_agents().await.unwrap().into_iter().map(|row| (row.id, row.last_seen_us)).collect();
    assert_eq!(seen, BTreeMap::from([("a0".into(), 50), ("a1".into(), 10), ("a2".into(), 70)]));
}

async fn a_module_name_belongs_to_its_first_team(url: &str) {
    let store = Store::open(url).await.unwrap();
    let mine = module("base", "media", "one");
    assert!(store.insert_module(&mine).await.unwrap());
    assert!(matches!(store.insert_module(&module("base", "games", "two")).await, Err(StoreError::Conflict(_))));
    assert!(store.insert_bundle(&bundle("tools", "media", "one")).await.unwrap());
    assert!(matches!(store.insert_bundle(&bundle("tools", "games", "two")).await, Err(StoreError::Conflict(_))));
    let store = reopened(store, url).await;
    assert_eq!(store.module(&mine.name, &mine.digest).await.unwrap(), Some(mine.clone()));
    assert_eq!(store.module(&mine.name, &Digest::of(b"two")).await.unwrap(), None);
    let tools = bundle("tools", "media", "one");
    assert_eq!(store.bundle(&tools.name, &tools.version).await.unwrap(), Some(tools));
}

async fn a_version_that_comes_again_is_the_newest(url: &str) {
    let store = Store::open(url).await.unwrap();
    let name = "base".parse().unwrap();
    let (one, two) = (module("base", "media", "one"), module("base", "media", "two"));
    assert_eq!(store.module_newest(&name).await.unwrap(), None);
    assert!(store.insert_module(&one).await.unwrap());
    assert!(store.insert_module(&two).await.unwrap());
    assert!(!store.insert_module(&two).await.unwrap());
    assert_eq!(store.module_newest(&name).await.unwrap(), Some(two.clone()));
    assert!(!store.insert_module(&one).await.unwrap());
    assert_eq!(store.module_newest(&name).await.unwrap(), Some(one.clone()));
    assert_eq!(store.module_versions(&name, &page(5)).await.unwrap().items, [one, two]);
    let name = "tools".parse().unwrap();
    for (content, is_new) in [("one", true), ("two", true), ("one", false), ("one", false)] {
        assert_eq!(store.insert_bundle(&bundle("tools", "media", content)).await.unwrap(), is_new);
    }
    assert_eq!(store.bundle_newest(&name).await.unwrap(), Some(bundle("tools", "media", "one")));
}

async fn a_release_follows_the_one_that_was_expected(url: &str) {
    let store = Store::open(url).await.unwrap();
    assert!(matches!(store.add_release(&release("linux", "a"), Some(1)).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.add_release(&release("linux", "a"), None).await.unwrap(), 1);
    assert!(matches!(store.add_release(&release("linux", "b"), None).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.add_release(&release("linux", "b"), Some(1)).await.unwrap(), 2);
    assert_eq!(store.add_release(&release("mac", "c"), None).await.unwrap(), 1);
    let store = reopened(store, url).await;
    let current = store.current_releases().await.unwrap();
    let current: Vec<_> = current.iter().map(|row| (row.label.as_str(), row.release, row.how.as_str())).collect();
    assert_eq!(current, [("linux", 2, "b"), ("mac", 1, "c")]);
    let label = "linux".parse().unwrap();
    let first = store.release(&label, 1).await.unwrap().unwrap();
    assert_eq!((first.how.as_str(), first.module, first.made_us), ("a", Digest::of(b"a"), 1));
    assert_eq!(store.release(&label, 3).await.unwrap(), None);
}

async fn of_two_applies_at_once_one_wins(url: &str) {
    let store = Store::open(url).await.unwrap();
    for expected in [None, Some(1), Some(2)] {
        let (one, two) = (release("linux", "one"), release("linux", "two"));
        let (first, second) = tokio::join!(store.add_release(&one, expected), store.add_release(&two, expected));
        assert_eq!([&first, &second].iter().filter(|result| result.is_ok()).count(), 1);
        assert!([first, second].into_iter().any(|result| matches!(result, Err(StoreError::Conflict(_)))));
    }
    assert_eq!(store.current_releases().await.unwrap()[0].release, 3);
}

async fn a_run_ends_once_with_its_records_and_its_agent(url: &str) {
    let store = Store::open(url).await.unwrap();
    let owner = agent("a1", "builder");
    let begun = run("r1", &owner, "linux");
    assert!(matches!(store.begin_run(&begun).await, Err(StoreError::Missing(_))));
    store.insert_agent(&owner, "first", None).await.unwrap();
    store.begin_run(&begun).await.unwrap();
    assert!(matches!(store.begin_run(&begun).await, Err(StoreError::Conflict(_))));
    store.append_records("r1", &log(0..1200), &journal(0..700)).await.unwrap();
    // Once more, as when the answer to the first was lost.
    store.append_records("r1", &log(5..6), &journal(699..700)).await.unwrap();
    assert!(matches!(store.append_records("r0", &[], &journal(0..1)).await, Err(StoreError::Missing(_))));
    let store = reopened(store, url).await;
    assert_eq!(store.unfinished_runs().await.unwrap(), std::slice::from_ref(&begun));

    let ready = AgentRow { state: AgentState::Ready, since_us: 200, ..owner };
    store.end_run("r1", &end(200), &log(1200..1201), &journal(700..701), Some((&ready, "all succeeded"))).await.unwrap();
    let again = store.end_run("r1", &end(300), &log(1300..1301), &[], Some((&ready, "again"))).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))));
    let store = reopened(store, url).await;
    assert!(store.unfinished_runs().await.unwrap().is_empty());
    let ended = RunRow {
        verdict: "provisioned".into(),
        reason: Some("done".into()),
        ended_us: Some(200),
        calls: 4,
        bytes_sent: 5,
        bytes_saved: 6,
        ..begun
    };
    assert_eq!(store.run("r1").await.unwrap(), Some(ended));
    assert_eq!(store.run_log("r1", 0, 5000).await.unwrap(), log(0..1201));
    assert_eq!(store.run_log("r1", 7, 2).await.unwrap(), log(7..9));
    assert_eq!(store.run_journal("r1", 0, 5000).await.unwrap(), journal(0..701));
    assert_eq!(store.run_journal("r1", 699, 5).await.unwrap(), journal(699..701));
    assert_eq!(store.living_agents().await.unwrap(), [ready]);
    assert_eq!(store.agent_events("a1", 1).await.unwrap()[0].cause, "all succeeded");
}

async fn a_run_that_can_not_end_leaves_nothing(url: &str) {
    let store = Store::open(url).await.unwrap();
    let owner = agent("a1", "builder");
    store.insert_agent(&owner, "first", None).await.unwrap();
    let missing = store.end_run("r0", &end(200), &[], &[], Some((&owner, "never"))).await;
    assert!(matches!(missing, Err(StoreError::Missing(_))));
    store.begin_run(&run("r1", &owner, "linux")).await.unwrap();
    store.append_records("r1", &log(0..1), &[]).await.unwrap();
    let ready = AgentRow { state: AgentState::Ready, ..owner.clone() };
    assert_eq!(store.unfinished_runs().await.unwrap().len(), 1);
    assert!(store.run_journal("r1", 0, 10).await.unwrap().is_empty());
    assert_eq!(store.living_agents().await.unwrap(), std::slice::from_ref(&owner));

    let gone = AgentRow { state: AgentState::Gone, ..owner };
    store.update_agent(&gone, Some("removed")).await.unwrap();
    store.end_run("r1", &end(200), &[], &[], Some((&ready, "too late"))).await.unwrap();
    assert!(store.living_agents().await.unwrap().is_empty(), "the end of its run brought an agent back");
    assert_eq!(store.agent_events("a1", 1).await.unwrap()[0].cause, "removed");
}

async fn runs_are_listed_by_agent_label_and_team(url: &str) {
    let store = Store::open(url).await.unwrap();
    let (one, two) = (agent("a1", "one"), agent("a2", "two"));
    for owner in [&one, &two] {
        store.insert_agent(owner, "first", None).await.unwrap();
    }
    for (id, owner, label) in [("r1", &one, "linux"), ("r2", &two, "linux"), ("r3", &one, "mac"), ("r4", &two, "arm")] {
        store.begin_run(&run(id, owner, label)).await.unwrap();
    }
    let listed = async |filter: RunFilter| {
        let paged = store.runs(&filter, &page(10)).await.unwrap();
        paged.items.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    let label = |name: &str| name.parse().unwrap();
    assert_eq!(listed(RunFilter::default()).await, ["r4", "r3", "r2", "r1"]);
    assert_eq!(listed(RunFilter { agent: Some(one.name.clone()), ..RunFilter::default() }).await, ["r3", "r1"]);
    assert_eq!(listed(RunFilter { label: Some(label("linux")), ..RunFilter::default() }).await, ["r2", "r1"]);
    let scope = Some(vec![label("linux"), label("arm")]);
    assert_eq!(listed(RunFilter { labels: scope.clone(), ..RunFilter::default() }).await, ["r4", "r2", "r1"]);
    assert_eq!(listed(RunFilter { agent: Some(two.name), label: Some(label("arm")), labels: scope }).await, ["r4"]);
    assert!(listed(RunFilter { labels: Some(vec![]), ..RunFilter::default() }).await.is_empty());
}

async fn a_nul_does_not_keep_a_run_from_ending(url: &str) {
    let store = Store::open(url).await.unwrap();
    let owner = agent("a1", "builder");
    store.insert_agent(&owner, "a\0b", None).await.unwrap();
    store.begin_run(&run("r1", &owner, "linux")).await.unwrap();
    let line = LogRow { seq: 0, at_us: 1, level: "stdout".into(), text: "a\0b".into() };
    let failed = AgentRow { state: AgentState::Failed, reason: "a\0b".into(), ..owner };
    let end = RunEnd { reason: Some("a\0b".into()), ..end(5) };
    store.end_run("r1", &end, &[line], &[(0, "a\0b".into())], Some((&failed, "a\0b"))).await.unwrap();
    assert_eq!(store.run_log("r1", 0, 1).await.unwrap()[0].text, "a\u{fffd}b");
}

async fn contents_beside_a_journal_are_read_again_and_go_with_their_run(url: &str) {
    let store = Store::open(url).await.unwrap();
    let owner = agent("a1", "builder");
    store.insert_agent(&owner, "first", None).await.unwrap();
    let content = |text: String| (Digest::of(text.as_bytes()), text.into_bytes());
    let noise =
        |at: u32| (0..100_u32).map(|part| Digest::of(&[at.to_le_bytes(), part.to_le_bytes()].concat()).to_string()).collect::<String>();
    let contents: Vec<_> = (0..20).map(|at| content(format!("\0{}", noise(at)))).collect();
    for id in ["r1", "r2", "r3"] {
        store.begin_run(&run(id, &owner, "linux")).await.unwrap();
        store.append_contents(id, &contents).await.unwrap();
        store.append_contents(id, &contents[..3]).await.unwrap();
        store.end_run(id, &end(5), &[], &[], None).await.unwrap();
    }
    assert!(matches!(store.append_contents("r0", &contents).await, Err(StoreError::Missing(_))));
    let all = async |id: &str| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.run_contents(id, after.as_ref(), 7).await.unwrap();
            let Some((last, _)) = page.last() else { return found };
            after = Some(*last);
            found.extend(page);
        }
    };
    let mut expected = contents.clone();
    expected.sort_by_key(|(digest, _)| digest.to_string());
    assert_eq!(all("r1").await, expected);
    // There is room for less than two runs' contents.
    let kept = Kept { contents_bytes: 150_000, ..KEPT };
    let cleared = store.clear(6, &kept).await.unwrap();
    assert_eq!((cleared.records, cleared.runs), (40, 0));
    assert_eq!((all("r1").await.len(), all("r2").await.len(), all("r3").await.len()), (0, 0, 20));
    assert_eq!(store.clear(6, &kept).await.unwrap(), Cleared::default());
    assert_eq!(store.clear(6, &Kept { records_us: 0, ..KEPT }).await.unwrap().records, 20, "they go with the log and the journal");
}

async fn what_is_beyond_the_limits_is_cleared(url: &str) {
    let store = Store::open(url).await.unwrap();
    let kept = Kept { runs_per_agent: 2, records_us: 1000, events_per_agent: 3, gone_us: 5000, ..KEPT };
    let (living, gone) = (agent("a1", "living"), agent("a2", "gone"));
    for owner in [&living, &gone] {
        store.insert_agent(owner, "first", None).await.unwrap();
    }
    // The oldest of the living agent's runs is still under way, and so is one of the agent that is gone.
    for (id, owner, ended_us) in [
        ("r0", &living, None),
        ("r1", &living, Some(8500)),
        ("r2", &living, Some(8600)),
        ("r3", &living, Some(9500)),
        ("r4", &gone, Some(100)),
        ("r5", &gone, None),
    ] {
        store.begin_run(&run(id, owner, "linux")).await.unwrap();
        store.append_records(id, &log(0..600), &journal(0..2)).await.unwrap();
        if let Some(ended_us) = ended_us {
            store.end_run(id, &end(ended_us), &[], &[], Some((owner, "ended"))).await.unwrap();
        }
    }
    for at in 0..3 {
        store.update_agent(&living, Some(&format!("cause {at}"))).await.unwrap();
    }
    store.update_agent(&AgentRow { state: AgentState::Gone, since_us: 4999, ..gone.clone() }, Some("reaped")).await.unwrap();
    assert_eq!(store.clear(5000, &KEPT).await.unwrap(), Cleared::default());

    let cleared = store.clear(10_000, &kept).await.unwrap();
    assert_eq!(cleared, Cleared { runs: 3, records: 4 * 602, events: 4, agents: 1, boots: 0 });
    let runs = store.runs(&RunFilter::default(), &page(10)).await.unwrap().items;
    assert_eq!(runs.iter().map(|run| run.id.as_str()).collect::<Vec<_>>(), ["r3", "r2", "r0"]);
    assert!(store.run_log("r2", 0, 10).await.unwrap().is_empty(), "ended longer ago than records are kept");
    assert_eq!(store.run_log("r3", 0, 1000).await.unwrap().len(), 600);
    assert_eq!(store.run_log("r0", 0, 1000).await.unwrap().len(), 600);
    let causes: Vec<_> = store.agent_events("a1", 10).await.unwrap().into_iter().map(|event| event.cause).collect();
    assert_eq!(causes, ["cause 2", "cause 1", "cause 0"]);
    assert_eq!(store.agent_by_name(&gone.name).await.unwrap(), None);
    assert_eq!(store.clear(10_000, &kept).await.unwrap(), Cleared::default());
    store.update_agent(&living, Some("cause 3")).await.unwrap();
    assert_eq!(store.agent_events("a1", 1).await.unwrap()[0].cause, "cause 3");
}

/// Has an agent boot from an image: a run of a label that ends at a time, was sent so many bytes and took half as many microseconds.
async fn boot(store: &Store, owner: &AgentRow, label: &str, image: Option<&str>, at_us: i64, bytes_sent: u64) {
    let id = Digest::of(format!("{label}-{at_us}-{image:?}").as_bytes()).to_string();
    store.begin_run(&run(&id, owner, label)).await.unwrap();
    let boot = Boot { label: label.parse().unwrap(), image: image.map(Into::into), sync_us: bytes_sent / 2 };
    store.end_run(&id, &RunEnd { bytes_sent, boot: Some(boot), ..end(at_us) }, &[], &[], None).await.unwrap();
}

async fn boots_are_summed_up_by_image_and_the_costliest_is_first(url: &str) {
    let store = Store::open(url).await.unwrap();
    let (linux, mac) = ("linux".parse().unwrap(), "mac".parse().unwrap());
    assert_eq!(store.boots_by_image(&linux, 0).await.unwrap(), []);
    let owner = agent("a1", "builder");
    store.insert_agent(&owner, "first", None).await.unwrap();
    boot(&store, &owner, "linux", Some("old"), 99, 1 << 50).await;
    boot(&store, &owner, "linux", Some("old"), 100, 30).await;
    boot(&store, &owner, "linux", Some("new"), 100, 0).await;
    boot(&store, &owner, "linux", Some("old"), 103, 41).await;
    boot(&store, &owner, "linux", None, 102, 70).await;
    boot(&store, &owner, "mac", Some("odd\0"), 101, u64::MAX).await;
    boot(&store, &owner, "mac", Some("odd\0"), 102, u64::MAX).await;
    // A run that is no boot does not count.
    store.begin_run(&run("r1", &owner, "linux")).await.unwrap();
    store.end_run("r1", &end(104), &[], &[], None).await.unwrap();
    let store = reopened(store, url).await;
    let row = |image: Option<&str>, boots, bytes_per_boot, sync_us_per_boot, last_us| ImageRow {
        image: image.map(Into::into),
        boots,
        bytes_per_boot,
        sync_us_per_boot,
        last_us,
    };
    let expected = [row(Some("old"), 2, 35.5, 17.5, 103), row(None, 1, 70.0, 35.0, 102), row(Some("new"), 1, 0.0, 0.0, 100)];
    assert_eq!(store.boots_by_image(&linux, 100).await.unwrap(), expected);
    let of_mac = store.boots_by_image(&mac, 0).await.unwrap();
    assert_eq!((of_mac.len(), of_mac[0].boots, of_mac[0].image.as_deref()), (1, 2, Some("odd\u{fffd}")));
    for at in 0..i64::from(BOOT_IMAGES_SHOWN_MAX) {
        boot(&store, &owner, "linux", Some(&format!("ami-{at}")), 200 + at, 1).await;
    }
    assert_eq!(store.boots_by_image(&linux, 100).await.unwrap().len(), BOOT_IMAGES_SHOWN_MAX as usize);
}

async fn boots_that_are_old_or_too_many_are_cleared(url: &str) {
    let store = Store::open(url).await.unwrap();
    let owner = agent("a1", "builder");
    store.insert_agent(&owner, "first", None).await.unwrap();
    for at in 0..6 {
        boot(&store, &owner, "linux", Some("ami-1"), 9000 + at, 1).await;
    }
    for at in [4999, 5000] {
        boot(&store, &owner, "mac", Some("ami-1"), at, 1).await;
    }
    let kept = Kept { runs_per_agent: 1, records_us: i64::MAX, boots_us: 5000, boots_per_label: 4, ..KEPT };
    let cleared = store.clear(10_000, &kept).await.unwrap();
    assert_eq!((cleared.runs, cleared.boots), (7, 3), "a boot outlives its run");
    for (label, boots, last_us) in [("linux", 4, 9005), ("mac", 1, 5000)] {
        let images = store.boots_by_image(&label.parse().unwrap(), 0).await.unwrap();
        assert_eq!((images.len(), images[0].boots, images[0].last_us), (1, boots, last_us), "{label}");
    }
    assert_eq!(store.clear(10_000, &kept).await.unwrap(), Cleared::default());
}

async fn a_version_that_is_there_is_opened_again(url: &str) {
    let (one, two) = (Store::open(url).await.unwrap(), Store::open(url).await.unwrap());
    one.insert_token(&token("a")).await.unwrap();
    assert_eq!(two.token("a").await.unwrap(), Some(token("a")));
}

async fn what_is_lost_and_what_is_not_known_any_more_is_forgotten(url: &str) {
    let store = Store::open(url).await.unwrap();
    let digests: Vec<Digest> = (0..4_u8).map(|at| Digest::of(&[at])).collect();
    let place = |segment, offset| Place { segment, offset, frame_bytes: 10, size: 20, crc: None };
    let places = [place(1, 0), place(1, 10), place(1, 20), place(2, 20)];
    store.insert_contents(&digests.iter().copied().zip(places).collect::<Vec<_>>()).await.unwrap();
    let there = async || store.places(&digests).await.unwrap().iter().map(Option::is_some).collect::<Vec<_>>();
    assert_eq!(store.forget_contents(1, Gone::Beyond(20)).await.unwrap(), 1);
    assert_eq!(there().await, [true, true, false, true]);
    assert_eq!(store.forget_contents(2, Gone::One(digests[0])).await.unwrap(), 0, "it lies elsewhere");
    assert_eq!(store.forget_contents(1, Gone::One(digests[0])).await.unwrap(), 1);
    assert_eq!(store.forget_contents(1, Gone::Beyond(0)).await.unwrap(), 1);
    assert_eq!(there().await, [false, false, false, true]);
    store.remember_host_key("one", "key", 1).await.unwrap();
    store.forget_host_key("one").await.unwrap();
    store.forget_host_key("one").await.unwrap();
    assert_eq!(store.host_key("one").await.unwrap(), None);
    store.remember_host_key("one", "other", 2).await.unwrap();
}

#[tokio::test]
async fn a_url_of_another_kind_is_refused() {
    for url in ["mysql://localhost/muster", "muster.db", ""] {
        assert!(matches!(Store::open(url).await, Err(StoreError::Url)), "{url:?} was taken");
    }
}

#[tokio::test]
async fn many_writers_and_readers_of_sqlite_are_never_told_busy() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite://{}/muster.db", directory.path().display())).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            for at in 0..10 {
                let name = format!("w{writer}-{at}");
                store.insert_agent(&agent(&name, &name), "first", None).await.unwrap();
                store.living_agents().await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.living_agents().await.unwrap().len(), 200);
}

fn files_below(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => drop(found.insert(entry.file_name().into_string().unwrap())),
        }
    }
    found
}

#[tokio::test]
async fn a_content_is_found_under_its_digest_alone() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&directory.path().join("blobs")).await.unwrap();
    let content = Bytes::from_static(b"content");
    let digest = Digest::of(&content);
    assert!(matches!(blobs.get(&digest, 100).await, Err(BlobError::Missing(_))));
    assert!(blobs.put(&digest, content.clone()).await.unwrap());
    assert!(!blobs.put(&digest, content.clone()).await.unwrap());
    assert_eq!(blobs.get(&digest, 7).await.unwrap(), content);
    assert!(matches!(blobs.get(&digest, 6).await, Err(BlobError::TooLarge { bytes: 7, .. })));
    let path = directory.path().join("blobs").join(&digest.to_string()[..2]).join(&digest.to_string()[2..]);
    std::fs::write(path, b"another").unwrap();
    assert!(matches!(blobs.get(&digest, 7).await, Err(BlobError::Mismatch { .. })), "what rotted was given out");
}

#[tokio::test]
async fn a_content_that_is_not_what_was_said_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(directory.path()).await.unwrap();
    let digest = Digest::of(b"content");
    assert!(matches!(blobs.put(&digest, Bytes::from_static(b"others")).await, Err(BlobError::Mismatch { .. })));
    assert!(matches!(blobs.get(&digest, 100).await, Err(BlobError::Missing(_))));
    assert!(files_below(directory.path()).is_empty());
}

/// A store in a directory, and its segments.
async fn segments(directory: &Path) -> (Store, Segments) {
    let store = Store::open(&format!("sqlite://{}", directory.join("muster.db").display())).await.unwrap();
    let blobs = Blobs::open(&directory.join("blobs")).await.unwrap();
    let sending = Sending { streams_max: 1, bytes_per_second: None };
    let segments = Segments::open(&directory.join("segments"), blobs, store.clone(), sending).await.unwrap();
    (store, segments)
}

#[tokio::test]
async fn contents_are_kept_together_and_given_out_as_they_came() {
    let directory = tempfile::tempdir().unwrap();
    let (store, all) = segments(directory.path()).await;
    let mut packer = Packer::new().unwrap();
    // Enough of what does not get smaller for more than one segment.
    let contents: Vec<Vec<u8>> = (0..300).map(noise).collect();
    let packed: Vec<_> = contents.iter().map(|content| packer.pack(Digest::of(content), content).unwrap()).collect();
    let mut writer = all.writer();
    for packed in &packed {
        writer.add(packed).await.unwrap();
    }
    writer.finish().await.unwrap();
    assert!(files_below(&directory.path().join("segments")).len() > 1);
    let entries = contents.iter().enumerate().map(|(at, content)| {
        let kind = Kind::File { size: content.len() as u64, mtime: 0, digest: Digest::of(content), chunks: Box::default() };
        Entry { path: format!("f{at}").parse().unwrap(), mode: 0o644, kind }
    });
    let manifest = Manifest::new(entries.collect()).unwrap();
    let given = all.of(&manifest).await.unwrap();
    for (at, (digest, _)) in (0..).zip(manifest.contents()) {
        let expected = packed.iter().find(|packed| packed.digest == *digest).unwrap();
        assert_eq!(given.read(at).await.unwrap(), *expected);
    }
    // Read in the order in which they lie, each segment is read once.
    let read = all.read_bytes();
    let mut packing = Packing::new(&Bundle::new("b".parse().unwrap(), manifest.clone(), given), 0..300).await;
    while packing.next(&[]).await.unwrap().is_some() {}
    assert!(all.read_bytes() - read <= packed.iter().map(|packed| packed.frame.len() as u64).sum());

    // What a server that was cut off had not written whole is deleted at the next start. A whole segment stays, with a row or without.
    std::fs::write(directory.path().join("segments/00000000000000ee"), b"whole").unwrap();
    let before = files_below(&directory.path().join("segments"));
    std::fs::write(directory.path().join("segments/00000000000000ff#1"), b"cut off").unwrap();
    store.close().await;
    let (_store, all) = segments(directory.path()).await;
    assert_eq!(files_below(&directory.path().join("segments")), before);
    assert_eq!(all.of(&manifest).await.unwrap().read(7).await.unwrap().digest, manifest.contents()[7].0);
    let other = Kind::File { size: 1, mtime: 0, digest: Digest::of(b"?"), chunks: Box::default() };
    let other = Manifest::new(vec![Entry { path: "a".parse().unwrap(), mode: 0o644, kind: other }]).unwrap();
    assert!(matches!(all.of(&other).await, Err(SegmentError::Blob(BlobError::Missing(_)))));
}

/// A content that does not get smaller when it is compressed.
fn noise(seed: u64) -> Vec<u8> {
    (0..4000).flat_map(|n| Digest::of(&[seed, n].map(u64::to_le_bytes).concat()).as_bytes()[..4].to_vec()).collect()
}

#[tokio::test]
async fn what_is_lost_of_a_segment_is_told_missing_and_read_again_when_it_has_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let (store, all) = segments(directory.path()).await;
    let contents: Vec<Vec<u8>> = (0..3).map(noise).collect();
    let mut packer = Packer::new().unwrap();
    let packed: Vec<_> = contents.iter().map(|content| packer.pack(Digest::of(content), content).unwrap()).collect();
    let digests: Vec<Digest> = packed.iter().map(|packed| packed.digest).collect();
    let write = async || {
        let mut writer = all.writer();
        for (packed, place) in packed.iter().zip(store.places(&digests).await.unwrap()) {
            if place.is_none() {
                writer.add(packed).await.unwrap();
            }
        }
        writer.finish().await.unwrap();
    };
    let there = async || store.places(&digests).await.unwrap().iter().map(Option::is_some).collect::<Vec<_>>();
    let file = async || {
        let segment = store.places(&digests).await.unwrap()[2].unwrap().segment;
        directory.path().join(format!("segments/{segment:016x}"))
    };
    let entries = contents.iter().zip(["a", "b", "c"]).map(|(content, path)| {
        let kind = Kind::File { size: content.len() as u64, mtime: 0, digest: Digest::of(content), chunks: Box::default() };
        Entry { path: path.parse().unwrap(), mode: 0o644, kind }
    });
    let manifest = Manifest::new(entries.collect()).unwrap();
    let index = |at: usize| manifest.content_index(&digests[at]).unwrap();
    write().await;
    // A bit of the second is another; then the third is cut off; then nothing is there.
    let mut bytes = std::fs::read(file().await).unwrap();
    bytes[packed[0].frame.len() + 1000] ^= 1;
    std::fs::write(file().await, &bytes).unwrap();
    let given = all.of(&manifest).await.unwrap();
    assert_eq!(given.read(index(0)).await.unwrap(), packed[0]);
    let lost = given.read(index(1)).await.unwrap_err().to_string();
    assert!(lost.contains("is damaged; push the bundles"), "{lost}");
    assert_eq!(there().await, [true, false, true]);
    assert!(given.read(index(1)).await.is_err());
    write().await;
    // Who had it at hand before reads it from where it is now.
    assert_eq!(given.read(index(1)).await.unwrap(), packed[1]);

    bytes.truncate(bytes.len() - 1);
    std::fs::write(file().await, &bytes).unwrap();
    let (_, all) = segments(directory.path()).await;
    let given = all.of(&manifest).await.unwrap();
    assert!(given.read(index(2)).await.unwrap_err().to_string().contains("was cut off; push"));
    assert_eq!(there().await, [true, true, false]);
    write().await;
    assert_eq!(given.read(index(2)).await.unwrap(), packed[2]);

    for segment in std::fs::read_dir(directory.path().join("segments")).unwrap() {
        std::fs::remove_file(segment.unwrap().path()).unwrap();
    }
    let (_, all) = segments(directory.path()).await;
    let given = all.of(&manifest).await.unwrap();
    for at in 0..3 {
        assert!(given.read(index(at)).await.unwrap_err().to_string().contains("is missing; push"));
    }
    assert_eq!(there().await, [false; 3]);
    write().await;
    for (at, packed) in packed.iter().enumerate() {
        assert_eq!(given.read(index(at)).await.unwrap(), *packed);
    }
}

#[tokio::test]
async fn callers_who_read_keep_no_agent_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, all) = segments(directory.path()).await;
    let agents = all.of(&Manifest::new(Vec::new()).unwrap()).await.unwrap();
    let readers = all.for_readers(Arc::clone(&agents));
    let mut held = Vec::new();
    for _ in 0..CONTENTS_READERS_MAX {
        held.push(readers.turn().await);
    }
    assert!(readers.turn().now_or_never().is_none());
    let agent = agents.turn().now_or_never().expect("the only turn of agents is taken");
    assert!(agents.turn().now_or_never().is_none());
    held.pop();
    assert!(readers.turn().now_or_never().is_some());
    drop(agent);
}

#[tokio::test]
async fn one_content_may_be_put_many_times_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(directory.path()).await.unwrap();
    let content = Bytes::from(vec![7; 300_000]);
    let digest = Digest::of(&content);
    let puts = (0..16).map(|_| blobs.put(&digest, content.clone()));
    let done = futures_util::future::join_all(puts).await;
    assert_eq!(done.into_iter().filter(|new| *new.as_ref().unwrap()).count(), 1);
    assert_eq!(blobs.get(&digest, content.len()).await.unwrap(), content);
    assert_eq!(files_below(directory.path()).len(), 1);
}

#[tokio::test]
async fn opening_the_contents_deletes_what_was_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(directory.path()).await.unwrap();
    let content = Bytes::from_static(b"content");
    let digest = Digest::of(&content);
    blobs.put(&digest, content.clone()).await.unwrap();
    // What the store leaves of a content when the server is killed.
    let path = files_below(directory.path()).into_iter().next().unwrap();
    let cut_off = directory.path().join(&digest.to_string()[..2]).join(format!("{path}#1"));
    std::fs::write(cut_off, b"con").unwrap();
    assert_eq!(files_below(directory.path()).len(), 2);
    let blobs = Blobs::open(directory.path()).await.unwrap();
    assert_eq!(files_below(directory.path()).len(), 1);
    assert_eq!(blobs.get(&digest, 7).await.unwrap(), content);
}

#[tokio::test]
async fn a_secret_is_read_anew_and_only_if_it_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = Secrets::open(&directory.path().join("secrets")).unwrap();
    let mode = std::fs::metadata(directory.path().join("secrets")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let (team, name) = ("media".parse().unwrap(), "password".parse().unwrap());
    assert_eq!(secrets.get(&team, &name).await.unwrap(), None);
    let path = directory.path().join("secrets/media/password");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let write = |content: &[u8], mode| {
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        file.write_all(content).unwrap();
    };
    for (content, secret) in
        [(&b"one\n"[..], &b"one"[..]), (b"two", b"two"), (b"three\r\n", b"three"), (b"four\n\n", b"four\n"), (b"", b"")]
    {
        write(content, 0o600);
        assert_eq!(secrets.get(&team, &name).await.unwrap().unwrap(), secret);
    }
    write(b"one", 0o640);
    let open = secrets.get(&team, &name).await.unwrap_err();
    assert_eq!(open.to_string(), "the secret media/password has mode 640: only its owner may have access, as with mode 600");
    write(&vec![b'x'; SECRET_BYTES_MAX + 1], 0o600);
    assert!(matches!(secrets.get(&team, &name).await, Err(SecretError::TooLarge { .. })));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(secrets.get(&team, &name).await, Err(SecretError::Read { .. })), "a way out of the directory was taken");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(secrets.get(&team, &name).await, Err(SecretError::Kind { .. })));
}
