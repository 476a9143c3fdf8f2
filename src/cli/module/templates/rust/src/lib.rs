//! Writes the label's settings to the file `settings.conf` below the agent's root.

wit_bindgen::generate!({ path: "wit", world: "provisioner" });

use exports::muster::provision::provisioning::{Guest, Refusal};
use muster::provision::agent::{self, Error};
use muster::provision::log::{self, Level};
use muster::provision::settings;

struct Module;

export!(Module);

impl Guest for Module {
    fn provision() -> Result<(), Refusal> {
        log::step("write the settings");
        let all = settings::all();
        let text = lines(&all).map_err(Refusal::Never)?;
        let change = agent::write_file("settings.conf", text.as_bytes(), 0o644).map_err(refusal)?;
        let note = if change.changed() {
            "the settings were written"
        } else {
            "the settings were there already"
        };
        log::write(Level::Info, note);
        Ok(())
    }
}

/// The settings as the file has them, a line each; or why they can not be.
fn lines(settings: &[(String, String)]) -> Result<String, String> {
    match settings.iter().find(|(_, value)| value.contains('\n')) {
        Some((name, _)) => Err(format!("the setting `{name}` has more than one line")),
        None => Ok(settings
            .iter()
            .map(|(name, value)| format!("{name} = {value}\n"))
            .collect()),
    }
}

/// What a call that was not done means for the machine: what the policy forbids will not be allowed by trying again.
fn refusal(error: Error) -> Refusal {
    match error {
        Error::Denied(what) => Refusal::Never(what),
        other => Refusal::Other(Some(other.to_string())),
    }
}

// What needs no machine is tested here, by `cargo test`. The whole module is tried by `muster module try`.
#[cfg(test)]
mod tests {
    use super::*;

    fn settings(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn the_settings_are_written_as_lines() {
        assert_eq!(
            lines(&settings(&[("jdk", "17"), ("lang", "C")])),
            Ok("jdk = 17\nlang = C\n".into())
        );
    }

    #[test]
    fn a_setting_of_two_lines_is_refused() {
        assert!(lines(&settings(&[("jdk", "1\n7")])).is_err_and(|reason| reason.contains("`jdk`")));
    }
}
