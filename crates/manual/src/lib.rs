//! Man pages and shell completions, generated from the programs' argument definitions, so that they cannot differ.

use std::{fs, io, path::Path};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The shells that complete Ferry's commands.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// The part of the manual that a program belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Programs for all users.
    User,
    /// Programs that root or a service runs.
    Administrator,
}

impl Section {
    /// Its number, as in `man 8 ferry-agent`.
    pub fn number(self) -> &'static str {
        match self {
            Self::User => "1",
            Self::Administrator => "8",
        }
    }
}

/// Writes into `folder`, which is created if missing: a page for the program and for each of its commands
/// (`ferry-host-add.1`), and completions (`ferry.bash`, `_ferry`, `ferry.fish`). Hidden commands are omitted.
///
/// # Errors
/// A file cannot be written.
pub fn write(command: Command, section: Section, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // `ferry help host add` needs no page and no completion of its own.
    let mut command = command.disable_help_subcommand(true);
    let mut offered = shown(&command);
    let name = command.get_name().to_owned();
    let version = format!("{name} {}", command.get_version().unwrap_or_default());
    command.build();
    write_pages(&command, section, &version, folder)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut offered, &name, folder)?;
    }
    Ok(())
}

fn write_pages(command: &Command, section: Section, version: &str, folder: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(command, section, version, folder)?;
    }
    // Without a date the page would show the version in its place, so the date is a space.
    let page = Man::new(command.clone()).section(section.number()).date(" ").source(version).manual("Ferry");
    let path = page.generate_to(folder)?;
    let text = fs::read_to_string(&path)?;
    fs::write(path, ragged(&text))
}

/// The page with a synopsis that is not stretched to both margins: a group of options is one word, which may be as long as
/// a line, and groff complains of a line without a space to stretch.
fn ragged(page: &str) -> String {
    page.replacen(".SH SYNOPSIS\n", ".SH SYNOPSIS\n.ad l\n", 1).replacen(
        "\n.SH DESCRIPTION\n",
        "\n.ad b\n.SH DESCRIPTION\n",
        1,
    )
}

/// The command without hidden subcommands, which completions would otherwise offer.
fn shown(command: &Command) -> Command {
    let mut copy = Command::new(command.get_name().to_owned()).disable_help_subcommand(true);
    if let Some(version) = command.get_version() {
        copy = copy.version(version.to_owned());
    }
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).map(shown);
    copy.args(command.get_arguments().cloned()).subcommands(commands)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Arg, ArgGroup};

    use super::*;

    fn sample() -> Command {
        let add = Command::new("add").about("Add a wing").arg(Arg::new("name").required(true));
        let wing = Command::new("wing").about("Add wings").subcommand(add);
        let carry = Command::new("carry").about("Started by the program itself").hide(true);
        let place = Arg::new("place").long("place").help("Where: `\\\\\\\\server\\\\share`").global(true);
        Command::new("duck").version("1.2.3").about("Quack").arg(place).subcommands([wing, carry])
    }

    fn written(section: Section) -> (tempfile::TempDir, BTreeSet<String>) {
        let folder = tempfile::tempdir().expect("a folder");
        write(sample(), section, &folder.path().join("new")).expect("written");
        let entries = fs::read_dir(folder.path().join("new")).expect("made");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("plain")).collect();
        (folder, names)
    }

    #[test]
    fn each_command_has_a_page_and_the_program_completions() {
        let (folder, names) = written(Section::Administrator);
        let expected = ["_duck", "duck-wing-add.8", "duck-wing.8", "duck.8", "duck.bash", "duck.fish"];
        assert_eq!(names, expected.map(str::to_owned).into());
        let page = fs::read_to_string(folder.path().join("new/duck-wing-add.8")).expect("there");
        assert!(
            page.contains(".TH duck-wing-add 8 \" \" \"duck 1.2.3\" Ferry") && page.contains("Add a wing"),
            "{page}"
        );
        assert!(written(Section::User).1.contains("duck.1"));
    }

    #[test]
    fn a_group_of_options_may_be_longer_than_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = ["one", "two", "three"].map(|number| format!("{number}-of-those-options-with-very-long-names"));
        let options = names.iter().map(|name| Arg::new(name.clone()).long(name.clone()).help("Help").group("what"));
        let group = ArgGroup::new("what").required(true).multiple(true);
        let command = Command::new("duck").version("1").about("Quack").args(options).group(group);
        write(command, Section::User, folder.path()).expect("written");
        let page = fs::read_to_string(folder.path().join("duck.1")).expect("there");
        let synopsis = page.split(".SH ").find(|section| section.starts_with("SYNOPSIS")).expect("a synopsis");
        assert!(synopsis.starts_with("SYNOPSIS\n.ad l\n") && synopsis.ends_with("\n.ad b\n"), "{page}");
    }

    #[test]
    fn what_is_hidden_is_in_no_page_and_in_no_completion() {
        let (folder, names) = written(Section::User);
        for name in names {
            let text = fs::read_to_string(folder.path().join("new").join(&name)).expect("there");
            assert!(!text.contains("carry"), "{name}: {text}");
            assert!(text.contains("wing"), "{name} holds what is shown: {text}");
        }
    }
}
