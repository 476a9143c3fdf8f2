//! `muster label edit`: the script of a label's module in the editor of whoever asks, and back.
//!
//! The new text is pushed first, so that one with a mistake in it never gets near a label; then it is swapped in as any module is. What was
//! edited is kept on this machine until it is in force.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use clap::builder::styling::{AnsiColor, Style};
use futures_util::stream;
use reqwest::Method;
use similar::TextDiff;

use crate::api::{LabelDetail, Module, ModuleKind, ScriptText};
use crate::cli::client::{Client, ClientError};
use crate::cli::label::{Change, change};
use crate::cli::output::Output;
use crate::cli::{CliError, HEADING, doing};
use crate::limits::SCRIPT_BYTES_MAX;
use crate::names::{LabelName, ScriptName};
use crate::policy::ModuleRef;

/// What opens a text where nobody says otherwise.
const EDITOR: &str = "vi";

/// Lets the caller edit the script of a label's module, and puts it in force.
pub(super) async fn run(label: LabelName, yes: bool, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let (release, module) = in_force(&label, client).await?;
    let path = ["modules", &module.name, &module.digest];
    if module.kind != ModuleKind::Script {
        return Err(CliError::usage(
            format!("the module `{}` of label {label} is a component, and has no text to edit", module.name),
            "build its project, then `muster module push` and `muster label swap`",
        ));
    }
    let script: ScriptText =
        client.get(&[&path[..], &["script"]].concat(), &[]).await.map_err(doing(format!("fetch the script of {}", module.name)))?;
    let draft = Draft::new(&script)?;
    let edited = edit(&draft, &label, release, &module, &script, yes, client, output).await;
    match &edited {
        Ok(()) => draft.remove(),
        Err(_) => output.aside(&format!("what was edited is kept: {}", draft.file.display()))?,
    }
    edited
}

/// The number of the release in force, and its module.
async fn in_force(label: &LabelName, client: &Client) -> Result<(i64, Module), CliError> {
    let what = format!("show the label {label}");
    let detail: LabelDetail = client.get(&["labels", label.as_str()], &[]).await.map_err(doing(what.clone()))?;
    let reference = detail.release.policy.get("module").and_then(serde_json::Value::as_str).unwrap_or_default();
    let reference: ModuleRef = reference.parse().map_err(|error| CliError::failed(what.clone(), error))?;
    let digest = reference.digest.map(|digest| digest.to_string()).unwrap_or_default();
    let module = client.get(&["modules", reference.name.as_str(), &digest], &[]).await;
    Ok((detail.release.release, module.map_err(doing(format!("show {reference}")))?))
}

#[expect(clippy::too_many_arguments, reason = "one walk, in one place")]
async fn edit(
    draft: &Draft,
    label: &LabelName,
    release: i64,
    module: &Module,
    script: &ScriptText,
    yes: bool,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let pushed = loop {
        draft.open()?;
        let text = draft.read()?;
        if text == script.text {
            return output.note(Style::new(), &format!("{label}: nothing changes"));
        }
        show(&script.file, &script.text, &text, output)?;
        match push(module, &script.file, text, client).await {
            Ok(pushed) => break pushed,
            Err(error) if error.code() == Some("syntax") && !yes && Output::can_ask() => {
                output.note(AnsiColor::Red.on_default(), &error.to_string())?;
                if !output.ask("Edit again?")? {
                    return Err(CliError::failed("go on", "the answer was no; nothing was changed"));
                }
            }
            Err(error) => return Err(doing(format!("push {}", script.file))(error)),
        }
    };
    // Whoever edits one text must not undo what somebody else has put in force meanwhile.
    let (now, _) = in_force(label, client).await?;
    if now != release {
        return Err(CliError::failed(
            format!("swap the label {label}"),
            format!(
                "release {now} came in force while release {release} was edited; edit the new one, or `muster label swap` to what was pushed"
            ),
        ));
    }
    let wrong = |error: crate::names::NameError| CliError::failed("read the answer", error);
    let reference = ModuleRef { name: pushed.name.parse().map_err(wrong)?, digest: Some(pushed.digest.parse().map_err(wrong)?) };
    Box::pin(change(vec![Change::swap(label.clone(), reference)], yes, client, output)).await
}

async fn push(module: &Module, file: &str, text: String, client: &Client) -> Result<Module, ClientError> {
    let length = u64::try_from(text.len()).ok();
    let query = [("name", Some(module.name.clone())), ("team", Some(module.team.clone())), ("script", Some(file.to_owned()))];
    let body = stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(text))]);
    client.upload(Method::POST, &["modules"], &query, length, body).await
}

/// Shows what differs between two texts, as `diff -u` does.
fn show(file: &str, old: &str, new: &str, output: &mut Output) -> Result<(), CliError> {
    output.note(HEADING, file)?;
    let difference = TextDiff::from_lines(old, new);
    for line in difference.unified_diff().context_radius(3).to_string().lines() {
        let style = match line.as_bytes().first() {
            Some(b'+') => AnsiColor::Green.on_default(),
            Some(b'-') => AnsiColor::Red.on_default(),
            Some(b'@') => AnsiColor::Cyan.on_default(),
            _ => Style::new(),
        };
        output.note(style, line)?;
    }
    Ok(())
}

/// A script on this machine, in a directory that is the caller's alone.
struct Draft {
    directory: PathBuf,
    file: PathBuf,
}

impl Draft {
    fn new(script: &ScriptText) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::failed("make a file to edit", error);
        // It comes from a server: a name, and no path.
        let name: ScriptName = script.file.parse().map_err(|error| CliError::failed("make a file to edit", error))?;
        let directory = std::env::temp_dir().join(format!("muster-edit-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let file = directory.join(name.as_str());
        let mut opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).map_err(failed)?;
        opened.write_all(script.text.as_bytes()).map_err(failed)?;
        Ok(Self { directory, file })
    }

    /// Opens it in the caller's editor, and waits until that has ended.
    fn open(&self) -> Result<(), CliError> {
        #[expect(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
        let named = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
        let editor = named.unwrap_or_else(|| EDITOR.into());
        let words = words(&editor);
        let (program, arguments) = words.split_first().ok_or_else(|| CliError::usage("$EDITOR is blank", "set it to an editor"))?;
        let ended = Command::new(program).args(arguments).arg(&self.file).status();
        let problem = match ended {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => format!("it ended with {status}"),
            Err(error) => error.to_string(),
        };
        Err(CliError::failed(format!("edit with `{}`, which $VISUAL or $EDITOR names", editor.display()), problem))
    }

    fn read(&self) -> Result<String, CliError> {
        let failed = |error: std::io::Error| CliError::failed(format!("read {}", self.file.display()), error);
        let bytes = std::fs::metadata(&self.file).map_err(failed)?.len();
        if usize::try_from(bytes).map_or(true, |bytes| bytes > SCRIPT_BYTES_MAX) {
            let problem = format!("it has {bytes} bytes; a script has at most {SCRIPT_BYTES_MAX}");
            return Err(CliError::failed(format!("take {}", self.file.display()), problem));
        }
        std::fs::read_to_string(&self.file).map_err(failed)
    }

    fn remove(self) {
        // It holds nothing that is needed any more, and editors may have left files of their own beside it.
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// The editor and its arguments: `code --wait`, say. A path with blanks in it is one word if it is a file.
fn words(editor: &OsString) -> Vec<OsString> {
    if Path::new(editor).is_file() {
        return vec![editor.clone()];
    }
    editor.to_string_lossy().split_whitespace().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::fixture::output;

    #[test]
    fn what_differs_is_shown_as_diff_does() {
        let (mut out, text) = output(false, true);
        show("hook.js", "one\ntwo\nthree\n", "one\n2\nthree\n", &mut out).unwrap();
        assert_eq!(text.take(), "hook.js\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n");
    }

    #[test]
    fn an_editor_may_have_arguments() {
        assert_eq!(words(&"code --wait".into()), ["code", "--wait"]);
        assert!(words(&"  ".into()).is_empty());
    }
}
