//! A Jenkins that stands in as a process of its own, for those who know no more of one than its port and the files in its home.

use std::path::PathBuf;

use super::{ADMIN_TOKEN, Jenkins, MUSTER_TOKEN, Plan, Version, jar};

/// `scripts/try-jenkins --stand-in` starts this as it starts the real one, and ends it by a signal.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it serves until it is killed"]
#[expect(clippy::disallowed_methods, reason = "whoever starts it says where it is to be")]
async fn serves_until_it_is_killed() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let home = PathBuf::from(variable("JENKINS_HOME"));
    let version = match variable("STAND_IN_VERSION").as_str() {
        "2.372" => Version::V2_372,
        "2.452.2" => Version::V2_452_2,
        other => panic!("{other} is none of 2.372 and 2.452.2"),
    };
    jar::java(&home, "17.0.15");
    let port = variable("STAND_IN_PORT").parse().unwrap();
    let _jenkins = Jenkins::start(Plan::default().version(version).real_timings().port(port)).await;
    for (name, token) in [("admin.token", ADMIN_TOKEN), ("muster.token", MUSTER_TOKEN)] {
        std::fs::write(home.join(name), token).unwrap();
    }
    std::future::pending::<()>().await;
}
