use std::{fs, io::Write, path::PathBuf};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use jevons_sys::atomic;

/// Print the manual page, or write one for every command
///
/// For example: jevons man --dir ~/.local/share/man/man1, then: man jevons-train
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write the pages of all commands to; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let mut command = crate::Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = &args.dir else { return Ok(out.write_all(&page(&command)?)?) };
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot make the folder", dir.display()))?;
    let mut pages = vec![];
    collect(&command, &mut pages)?;
    for (name, page) in &pages {
        let path = dir.join(name);
        atomic::write(&path, page).with_context(|| format!("{}: cannot write the page", path.display()))?;
    }
    Ok(writeln!(out, "{} pages written to {}", pages.len(), dir.display())?)
}

/// File name and content of the pages of a command and those below it.
fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    pages.push((Man::new(command.clone()).get_filename(), page(command)?));
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| collect(c, pages))
}

fn page(command: &Command) -> anyhow::Result<Vec<u8>> {
    let mut page = vec![];
    Man::new(command.clone())
        .source(concat!("jevons ", env!("CARGO_PKG_VERSION")))
        .manual("jevons")
        .render(&mut page)?;
    Ok(page)
}
