use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

/// Print a completion script for a shell
///
/// For example: jevons completions bash > ~/.local/share/bash-completion/completions/jevons
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shell to write for
    shell: Shell,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    // Into memory first: clap_complete panics where writing fails.
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "jevons", &mut script);
    Ok(out.write_all(&script)?)
}
