//! A team's module: stops the old agent, mirrors the bundle `tools` to the machine and launches the agent out of it.
//!
//! Every setting `env.X` of the label's policy becomes the variable `X` of the agent. With the feature `verify` the agent is asked for its
//! version before it is launched.

wit_bindgen::generate!({ path: "../../wit", world: "provisioner" });

use exports::muster::provision::provisioning::{Guest, Refusal};
use muster::provision::agent::{self, Command, Error};
use muster::provision::log::Level;
use muster::provision::{bits, log, registration, settings};

struct Tools;

export!(Tools);

impl Guest for Tools {
    fn provision() -> Result<(), Refusal> {
        let tools = format!("{}/tools", registration::root());
        let program = format!("{tools}/bin/ci-agent");
        stop_the_old_agent()?;
        mirror_the_tools(&tools)?;
        if cfg!(feature = "verify") {
            verify_the_tools(&program)?;
        }
        launch(&program)
    }
}

fn stop_the_old_agent() -> Result<(), Refusal> {
    log::step("stop the old agent");
    let ran = agent::stop().map_err(refusal)?;
    log::write(Level::Info, if ran { "the old agent was stopped" } else { "no agent was running" });
    Ok(())
}

fn mirror_the_tools(destination: &str) -> Result<(), Refusal> {
    log::step("mirror the tools");
    let Some(bundle) = bits::open("tools") else {
        return Err(Refusal::Never("the label's policy does not grant the bundle `tools`".into()));
    };
    let change = agent::mirror(&bundle, destination).map_err(refusal)?;
    let (files, changed, removed, sent) = (change.files(), change.files_changed(), change.files_removed(), change.bytes_sent());
    log::write(Level::Info, &format!("{changed} of {files} files changed, {removed} removed, {sent} bytes sent"));
    Ok(())
}

fn verify_the_tools(program: &str) -> Result<(), Refusal> {
    log::step("verify the tools");
    let command = Command::new(program, &["--version".into()]);
    command.timeout_ms(10_000);
    let output = match agent::probe(&command) {
        Ok(output) => output,
        Err(Error::NotFound(what)) => return Err(later(format!("the agent is missing: {what}"))),
        Err(Error::TimedOut) => return Err(later("the agent did not say its version in 10 seconds".into())),
        Err(error) => return Err(refusal(error)),
    };
    if output.status() != 0 {
        let said = String::from_utf8_lossy(&output.stderr()).trim().to_owned();
        return Err(later(format!("the agent does not start, it ended with status {}: {said}", output.status())));
    }
    log::write(Level::Info, &format!("the agent is {}", String::from_utf8_lossy(&output.stdout()).trim()));
    Ok(())
}

fn launch(program: &str) -> Result<(), Refusal> {
    log::step("launch");
    let command = Command::new(program, &["--name".into(), registration::name()]);
    for (setting, value) in settings::all() {
        if let Some(variable) = setting.strip_prefix("env.") {
            command.env(variable, &value);
        }
    }
    agent::launch(&command).map_err(refusal)
}

fn later(reason: String) -> Refusal {
    Refusal::Later((reason, 60))
}

/// Answers what a failed call means for the machine: what the policy forbids will not be allowed by trying again.
fn refusal(error: Error) -> Refusal {
    match error {
        Error::Denied(what) => Refusal::Never(what),
        Error::NotFound(what) => Refusal::Other(Some(format!("not found: {what}"))),
        Error::Invalid(what) => Refusal::Other(Some(format!("invalid: {what}"))),
        Error::Unreachable(what) => Refusal::Other(Some(format!("unreachable: {what}"))),
        Error::TimedOut => Refusal::Other(Some("a command took too long".into())),
        Error::OverBudget(what) => Refusal::Other(Some(format!("over budget: {what}"))),
        Error::Other(what) => Refusal::Other(what),
    }
}
