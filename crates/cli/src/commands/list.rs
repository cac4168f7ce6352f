use std::io::Write;

use jevons_hub::{Cache, CachedModel};
use serde_json::{Value, json};

use crate::human;

/// List the models on this machine
///
/// Those of the shared cache (HF_HUB_CACHE, HF_HOME), whichever tool has fetched them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let cache = Cache::from_env()?;
    let models = cache.models()?;
    if args.json {
        let models: Vec<Value> = models.iter().map(model_json).collect();
        return Ok(writeln!(out, "{:#}", json!({ "cache": cache.root(), "models": models }))?);
    }
    for model in &models {
        let names = |r: &jevons_hub::CachedRevision| match &r.refs[..] {
            [] => r.commit[..12].to_owned(),
            refs => refs.join(" "),
        };
        let mut notes: Vec<String> = model.revisions.iter().map(names).collect();
        if model.incomplete > 0 || model.revisions.is_empty() {
            notes.push(format!("incomplete, this goes on: jevons pull {}", model.repo));
        }
        writeln!(out, "{:>10}  {}  {}", human::bytes(model.bytes), model.repo, notes.join(", "))?;
    }
    if models.is_empty() {
        eprintln!("no models in {}; this fetches one: jevons pull org/name", cache.root().display());
    }
    Ok(())
}

/// One model and its states.
pub fn model_json(model: &CachedModel) -> Value {
    let file = |f: &jevons_hub::CachedFile| json!({ "path": f.path, "bytes": f.bytes, "hash": f.blob, "repairable": f.verified });
    let revision = |r: &jevons_hub::CachedRevision| {
        let files: Vec<Value> = r.files.iter().map(file).collect();
        json!({ "commit": r.commit, "refs": r.refs, "folder": r.folder, "files": files })
    };
    json!({
        "model": model.repo.to_string(),
        "folder": model.folder,
        "bytes": model.bytes,
        "incomplete_files": model.incomplete,
        "revisions": model.revisions.iter().map(revision).collect::<Vec<_>>(),
    })
}
