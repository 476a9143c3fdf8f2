//! What a policy launches, for one agent.

use crate::machine::Command;
use crate::policy::placeholders::{PlaceholderError, Values, fill};
use crate::roster::agent::View;

/// The command of a policy with this agent's values; none if the policy has none.
///
/// # Errors
/// When it was recorded with what is no placeholder: what is applied is checked.
pub(super) fn of_policy(command: Option<&[String]>, view: &View) -> Result<Option<Command>, PlaceholderError> {
    let Some((program, arguments)) = command.and_then(<[String]>::split_first) else { return Ok(None) };
    let labels: Vec<&str> = view.row.labels.iter().map(|label| label.as_str()).collect();
    let values = Values { name: view.row.name.as_str(), labels: &labels, root: &view.claims.root };
    let args = arguments.iter().map(|argument| fill(argument, &values)).collect::<Result<_, _>>()?;
    Ok(Some(Command { program: program.clone(), args, ..Command::default() }))
}
