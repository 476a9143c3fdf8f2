//! `muster completions` and `muster man`: what is made from the argument tree itself.

use std::path::PathBuf;

use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::CliError;
use crate::cli::output::Output;

/// What `muster completions` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// What `muster man` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Writes a file for each page into this directory instead
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the completions for a shell.
pub(crate) fn completions(args: &Args, mut tree: clap::Command, output: &mut Output) -> Result<(), CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut tree, "muster", &mut text);
    output.raw(&text)
}

/// Prints the manual pages, one after the other, or writes each into its own file.
pub(crate) fn man(args: &ManArgs, tree: clap::Command, output: &mut Output) -> Result<(), CliError> {
    if let Some(directory) = &args.out {
        let failed = |error: std::io::Error| CliError::failed(format!("write the pages into {}", directory.display()), error);
        std::fs::create_dir_all(directory).map_err(failed)?;
        clap_mangen::generate_to(tree, directory).map_err(failed)?;
        // `muster agent` and the program `muster-agent` would have one page: the program has the name.
        std::fs::rename(directory.join("muster-agent.1"), directory.join("muster-agent-commands.1")).map_err(failed)?;
        return clap_mangen::generate_to(crate::agent::command(), directory).map_err(failed);
    }
    let mut tree = tree.disable_help_subcommand(true);
    tree.build();
    output.raw(&pages(&tree)?)
}

fn pages(command: &clap::Command) -> Result<Vec<u8>, CliError> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text)?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        text.extend(pages(below)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Arguments;
    use crate::cli::output::fixture;

    #[test]
    fn every_shell_gets_completions() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let (mut out, text) = fixture::output(false, false);
            completions(&Args { shell }, Arguments::command(), &mut out).unwrap();
            assert!(text.take().contains("quarantine"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let (mut out, text) = fixture::output(false, false);
        man(&ManArgs { out: None }, Arguments::command(), &mut out).unwrap();
        let text = text.take();
        for title in [".TH muster ", ".TH muster-label-swap ", ".TH muster-run-logs "] {
            assert!(text.contains(title), "no {title}");
        }
        let directory = tempfile::tempdir().unwrap();
        let args = ManArgs { out: Some(directory.path().join("man")) };
        man(&args, Arguments::command(), &mut out).unwrap();
        assert!(directory.path().join("man/muster-agent-explain.1").is_file());
        let page = |name: &str| std::fs::read_to_string(directory.path().join("man").join(name)).unwrap();
        assert!(page("muster-agent.1").contains("allow\\-write") && page("muster-agent-commands.1").contains("quarantine"));
    }
}
