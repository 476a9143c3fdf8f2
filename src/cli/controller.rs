//! `muster controller`: what agents work for.

use reqwest::Method;

use crate::api::{Controller, ControllerCheck};
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::{CliError, doing};
use crate::names::ControllerName;

/// What `muster controller` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the controllers
    Ls {
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Looks whether a controller answers and what it lets its user do, with a node of its own that is removed again
    Check {
        /// The controller
        name: ControllerName,
    },
}

/// Does it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Ls { limit } => {
            let controllers: Vec<Controller> = client.list(&["controllers"], &[], limit).await.map_err(doing("list the controllers"))?;
            output.listing(
                &controllers,
                ["CONTROLLER", "TYPE", "URL", "USER", "VERSION", "LABELS", "SEEN", "PROBLEM"],
                |output, controller| {
                    [
                        controller.name.clone(),
                        controller.kind.clone(),
                        controller.url.clone(),
                        controller.user.clone(),
                        controller.version.clone().unwrap_or_default(),
                        controller.labels.join(","),
                        controller.seen_us.map(|at| output.age(at)).unwrap_or_default(),
                        controller.problem.clone().unwrap_or_default(),
                    ]
                },
            )
        }
        Command::Check { name } => {
            let path = ["controllers", name.as_str(), "check"];
            let what = format!("check the controller {name}");
            let checked: ControllerCheck =
                client.send(Method::POST, &path, &[], &serde_json::json!({})).await.map_err(doing(what.clone()))?;
            if output.json() {
                output.value(&checked)?;
            } else {
                show(&checked, output)?;
            }
            match verdict(&checked) {
                Some(wrong) => Err(CliError::failed(format!("use the controller {name}"), wrong)),
                None => Ok(()),
            }
        }
    }
}

fn show(checked: &ControllerCheck, output: &mut Output) -> Result<(), CliError> {
    let allowed =
        if checked.problem.is_none() && checked.missing.is_empty() && checked.unseen.is_empty() { "all that is needed" } else { "" };
    output.fields(&[
        ("controller", checked.name.clone()),
        ("url", checked.url.clone()),
        ("answers", if checked.answers { "yes" } else { "no" }.into()),
        ("version", checked.version.clone().unwrap_or_default()),
        ("user", checked.user.clone().unwrap_or_default()),
        ("allowed", allowed.into()),
        ("missing", checked.missing.join(", ")),
        ("not seen", checked.unseen.join(", ")),
        ("node left", checked.left.clone().unwrap_or_default()),
        ("problem", checked.problem.clone().unwrap_or_default()),
    ])
}

/// What is wrong with it; none if nothing is.
fn verdict(checked: &ControllerCheck) -> Option<String> {
    let missing = || format!("its user lacks {}", checked.missing.join(", "));
    match (&checked.problem, checked.missing.is_empty()) {
        (Some(problem), true) => Some(problem.clone()),
        (Some(problem), false) => Some(format!("{}; {problem}", missing())),
        (None, false) if !checked.unseen.is_empty() => {
            Some(format!("{}, without which it can not be seen whether it has {}", missing(), checked.unseen.join(", ")))
        }
        (None, false) => Some(missing()),
        (None, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(missing: &[&str], unseen: &[&str], problem: Option<&str>) -> Option<String> {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        verdict(&ControllerCheck {
            name: "main".into(),
            url: "http://h/".into(),
            answers: true,
            version: None,
            user: None,
            missing: texts(missing),
            unseen: texts(unseen),
            left: None,
            problem: problem.map(ToOwned::to_owned),
        })
    }

    #[test]
    fn a_controller_that_can_be_used_as_it_should_has_no_fault() {
        assert_eq!(checked(&[], &[], None), None);
        assert_eq!(checked(&["Agent/Delete"], &[], None).unwrap(), "its user lacks Agent/Delete");
        let unseen = checked(&["Agent/Create"], &["Agent/Connect", "Agent/Delete"], None).unwrap();
        assert_eq!(unseen, "its user lacks Agent/Create, without which it can not be seen whether it has Agent/Connect, Agent/Delete");
        assert_eq!(checked(&[], &["Agent/Create"], Some("the controller is away: x")).unwrap(), "the controller is away: x");
        assert_eq!(checked(&["Agent/Create"], &[], Some("x")).unwrap(), "its user lacks Agent/Create; x");
    }
}
