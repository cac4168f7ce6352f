use std::io::Write;

use anyhow::bail;
use jevons_hub::{Cache, HubError, Spec};

use crate::{human, input};

/// Delete a model from this machine
///
/// Deletes it from the shared cache, for other tools too. With a revision, only what no other revision needs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// org/name, or org/name@revision for one revision
    model: Spec,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let cache = Cache::from_env()?;
    cache.removal(&args.model)?; // before a lock is made for something that is not there
    let Some(lock) = cache.try_lock(&args.model.repo)? else {
        return Err(HubError::Locked { repo: args.model.repo.to_string() }.into());
    };
    let removal = cache.removal(&args.model)?;
    let size = human::bytes(removal.bytes);
    if !args.yes {
        if !input::can_ask() {
            bail!("{}: there is nobody to ask; this deletes it: jevons rm --yes {}", args.model, args.model);
        }
        let rest = if removal.whole { "" } else { " (other revisions stay)" };
        if !input::confirm(&format!("Delete {}, {size}, from {}{rest}?", args.model, cache.root().display()))? {
            bail!("{}: not deleted", args.model);
        }
    }
    cache.remove(&removal, &lock)?;
    Ok(writeln!(out, "{} deleted, {size} freed", args.model)?)
}
