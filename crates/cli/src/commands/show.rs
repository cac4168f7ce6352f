use std::io::Write;

use jevons_hub::{Cache, HubError, Spec};

use super::list::model_json;
use crate::human;

/// Show what is on this machine of a model: its revisions and files
///
/// `jevons info org/name` tells what kind of model it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// org/name, or org/name@revision for one revision
    model: Spec,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let cache = Cache::from_env()?;
    let absent = || HubError::NotCached { spec: args.model.to_string(), cache: cache.root().to_owned() };
    let mut model = cache.model(&args.model.repo)?.ok_or_else(absent)?;
    if args.model.revision.is_some() {
        let folder = cache.find(&args.model).ok_or_else(absent)?;
        model.revisions.retain(|r| r.folder == folder);
    }
    if args.json {
        return Ok(writeln!(out, "{:#}", model_json(&model))?);
    }
    writeln!(out, "{}, {} in {}", model.repo, human::bytes(model.bytes), model.folder.display())?;
    for revision in &model.revisions {
        writeln!(out, "\n{} {}", revision.commit, revision.refs.join(" "))?;
        for file in &revision.files {
            let size = file.bytes.map_or("missing".into(), human::bytes);
            writeln!(out, "{size:>10}  {}", file.path)?;
        }
    }
    if model.incomplete > 0 {
        writeln!(out, "\n{} files on their way; this goes on: jevons pull {}", model.incomplete, model.repo)?;
    }
    Ok(())
}
