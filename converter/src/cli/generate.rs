//! `esgz completions` and `esgz man`: what shells and readers of manuals want to know of the command line.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::args::Cli;
use crate::cli::failure::{Failure, OTHER};
use crate::cli::output;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write a page for every command there; without it, the page of esgz itself goes to stdout
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs `esgz completions`.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "esgz", &mut script);
    output::bytes(&script)
}

/// Runs `esgz man`.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let Some(dir) = &args.dir else {
        return output::bytes(&page(&Man::new(root()))?.1);
    };
    let mut pages = Vec::new();
    add_pages(&root(), &mut pages)?;
    for (name, page) in pages {
        output::write_file(&dir.join(name), &page)?;
    }
    Ok(())
}

fn root() -> Command {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    root
}

/// A file's name, and what it holds.
type Page = (String, Vec<u8>);

/// The command's page, and those of the commands below it.
fn add_pages(command: &Command, pages: &mut Vec<Page>) -> Result<(), Failure> {
    pages.push(page(&Man::new(command.clone()))?);
    let mut commands = command.get_subcommands();
    commands.try_for_each(|command| add_pages(command, pages))
}

fn page(man: &Man) -> Result<Page, Failure> {
    let mut page = Vec::new();
    man.render(&mut page)
        .map_err(|error| Failure::new(OTHER, error))?;
    Ok((man.get_filename(), page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_of_its_own() {
        let mut pages = Vec::new();
        add_pages(&root(), &mut pages).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| &**name).collect();
        for name in [
            "esgz.1",
            "esgz-record.1",
            "esgz-profile-show.1",
            "esgz-man.1",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        let text = |name: &str| {
            let (_, page) = pages.iter().find(|(known, _)| known == name).unwrap();
            String::from_utf8(page.clone()).unwrap()
        };
        assert!(
            text("esgz.1").contains("esgz\\-convert"),
            "{}",
            text("esgz.1")
        );
        assert!(text("esgz-convert.1").contains("transcode\\-overhead"));
    }

    #[test]
    fn shells_know_the_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "esgz", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("transcode-overhead"), "{shell}");
        }
    }
}
