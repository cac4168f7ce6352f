//! Where a model comes from: a folder, or the binary itself.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use jevons_hub::{Cache, Spec};
use jevons_infer::{GenerationConfig, Sampling};
use jevons_model::{Config, Model, checkpoint::Checkpoint, inspect::TokenizerFacts};
use jevons_text::{ChatTemplate, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

use crate::args::ComputeArgs;

/// The files of one model.
#[derive(Clone, Debug)]
pub enum Files {
    /// Embedded in the binary.
    BuiltIn(&'static BuiltIn),
    /// A checkpoint folder.
    Folder(PathBuf),
}

/// The embedded files.
#[derive(Debug)]
pub struct BuiltIn {
    config: &'static str,
    weights: &'static [u8],
    tokenizer: &'static str,
    tokenizer_config: &'static str,
    generation_config: &'static str,
}

impl BuiltIn {
    /// The bytes of model.safetensors.
    pub fn weights(&self) -> &'static [u8] {
        self.weights
    }
}

#[cfg(builtin_model)]
const BUILT_IN: Option<&BuiltIn> = Some(&BuiltIn {
    config: include_str!("../builtin/config.json"),
    weights: include_bytes!("../builtin/model.safetensors"),
    tokenizer: include_str!("../builtin/tokenizer.json"),
    tokenizer_config: include_str!("../builtin/tokenizer_config.json"),
    generation_config: include_str!("../builtin/generation_config.json"),
});
#[cfg(not(builtin_model))]
const BUILT_IN: Option<&BuiltIn> = None;

impl Files {
    /// The built-in model, or that of a checkpoint folder or run folder.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return match BUILT_IN {
                Some(files) => Ok(Self::BuiltIn(files)),
                None => bail!("this build has no built-in model; name a checkpoint folder: jevons chat MODEL"),
            };
        };
        let path = &*locate(path)?;
        let shown = path.display();
        if !path.is_dir() {
            bail!("{shown}: this is a file; a model is the folder with config.json and *.safetensors");
        }
        let candidates = [path.to_owned(), path.join("model")];
        match candidates.into_iter().find(|folder| folder.join("config.json").is_file()) {
            Some(folder) => Ok(Self::Folder(folder)),
            None => {
                bail!("{shown}: there is no config.json in it nor in its model/ folder; is the checkpoint complete?")
            }
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::BuiltIn(_) => "the built-in model".into(),
            Self::Folder(folder) => folder.display().to_string(),
        }
    }

    /// The folder of the weights.
    pub fn folder(&self) -> anyhow::Result<&Path> {
        match self {
            Self::BuiltIn(_) => bail!("the built-in model is part of the program; name a model folder"),
            Self::Folder(folder) => Ok(folder),
        }
    }

    pub fn config(&self) -> anyhow::Result<Config> {
        Ok(match self {
            Self::BuiltIn(files) => Config::from_json(files.config)?,
            Self::Folder(folder) => Config::from_file(folder.join("config.json"))?,
        })
    }

    /// Text of config.json.
    pub fn config_json(&self) -> anyhow::Result<Cow<'static, str>> {
        match self {
            Self::BuiltIn(files) => Ok(files.config.into()),
            Self::Folder(_) => Ok(self.text("config.json")?.context("config.json has gone")?),
        }
    }

    /// Loads the weights.
    pub fn model(&self, compute: &ComputeArgs) -> anyhow::Result<Model> {
        let adapter = compute.adapter()?;
        let options = compute.load_options(adapter.as_ref());
        Ok(match self {
            Self::BuiltIn(files) => Model::from_bytes(files.config, files.weights, options)?,
            Self::Folder(folder) => Model::load(folder, options)?,
        })
    }

    /// The weight files, unread.
    pub fn checkpoint(&self) -> anyhow::Result<Checkpoint<'static>> {
        Ok(match self {
            Self::BuiltIn(files) => Checkpoint::from_bytes(files.weights)?,
            Self::Folder(folder) => Checkpoint::open(folder)?,
        })
    }

    /// The tokenizer, if the model comes with one.
    pub fn tokenizer(&self) -> anyhow::Result<Option<Tokenizer>> {
        let tokenizer = match self {
            Self::BuiltIn(files) => Tokenizer::from_bytes(files.tokenizer.as_bytes())?,
            Self::Folder(folder) => match tokenizer_of_folder(folder)? {
                Some(tokenizer) => tokenizer,
                None => return Ok(None),
            },
        };
        // A vocabulary may be padded beyond the tokenizer, never the other way round.
        let (tokens, vocab_size) = (tokenizer.vocab_size(), self.config()?.vocab_size);
        if tokens > vocab_size {
            bail!(
                "{}: tokenizer.json has {tokens} tokens and config.json a vocab_size of {vocab_size}; does the tokenizer belong to another model?",
                self.name()
            );
        }
        Ok(Some(tokenizer))
    }

    /// The chat template, if the model comes with one.
    pub fn template(&self) -> anyhow::Result<Option<ChatTemplate>> {
        match self {
            Self::BuiltIn(files) => Ok(ChatTemplate::from_config(files.tokenizer_config)?),
            Self::Folder(folder) => ChatTemplate::from_folder(folder)
                .with_context(|| format!("{}: the chat template cannot be used", folder.display())),
        }
    }

    /// Token ids of a text, after the token that begins a text if tokenizer_config.json asks for it (`add_bos_token`).
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = self.begin()?;
        ids.extend(tokenizer.encode(text)?);
        Ok(ids)
    }

    /// The token that begins a text, if tokenizer_config.json asks for it.
    pub fn begin(&self) -> anyhow::Result<Vec<u32>> {
        #[derive(Deserialize)]
        struct TokenizerConfig {
            #[serde(default)]
            add_bos_token: Option<bool>,
        }
        let Some(json) = self.text("tokenizer_config.json")? else { return Ok(vec![]) };
        let config: TokenizerConfig = serde_json::from_str(&json)
            .with_context(|| format!("{}: tokenizer_config.json is not what it should be", self.name()))?;
        let bos = self.config()?.bos_token_id.filter(|_| config.add_bos_token == Some(true));
        Ok(bos.into_iter().collect())
    }

    /// How its makers want it to be sampled; without their word as DeepSeek-R1: temperature 0.6, top-p 0.95.
    pub fn sampling(&self) -> anyhow::Result<Sampling> {
        let ours = Sampling { temperature: 0.6, top_p: 0.95, ..Sampling::default() };
        Ok(self.generation_config()?.sampling(ours))
    }

    /// Tokens that end a text, by config.json and generation_config.json.
    pub fn eos_token_ids(&self) -> anyhow::Result<Vec<u32>> {
        let mut ids = self.config()?.eos_token_ids;
        ids.extend(self.generation_config()?.eos_token_ids());
        Ok(ids)
    }

    /// What the tokenizer's files say, whatever is wrong with them.
    pub fn tokenizer_facts(&self) -> TokenizerFacts {
        let mut facts = TokenizerFacts::default();
        let tokenizer = match self {
            Self::BuiltIn(files) => Tokenizer::from_bytes(files.tokenizer.as_bytes()).map(Some).map_err(Into::into),
            Self::Folder(folder) => tokenizer_of_folder(folder),
        };
        let tokenizer = tokenizer.unwrap_or_else(|error| {
            facts.error = Some(format!("{error:#}"));
            None
        });
        facts.tokens = tokenizer.as_ref().map(Tokenizer::vocab_size);
        match self.template() {
            Ok(template) => facts.chat_template = template.is_some(),
            Err(error) => facts.template_error = Some(format!("{error:#}")),
        }
        let json = self.text("tokenizer_config.json").ok().flatten();
        if let Some(config) = json.and_then(|json| serde_json::from_str::<Value>(&json).ok()) {
            let id = |key: &str| {
                let token = config[key].as_str().or_else(|| config[key]["content"].as_str())?;
                tokenizer.as_ref()?.token_to_id(token)
            };
            facts.add_bos_token = config["add_bos_token"].as_bool();
            (facts.bos_token_id, facts.eos_token_id) = (id("bos_token"), id("eos_token"));
        }
        match self.text("generation_config.json") {
            Ok(None) => {}
            Ok(Some(json)) => match GenerationConfig::from_json(&json) {
                Ok(config) => facts.generation_eos = Some(config.eos_token_ids()),
                Err(error) => facts.generation_error = Some(error.to_string()),
            },
            Err(error) => facts.generation_error = Some(format!("{error:#}")),
        }
        facts
    }

    fn generation_config(&self) -> anyhow::Result<GenerationConfig> {
        match self.text("generation_config.json")? {
            Some(json) => GenerationConfig::from_json(&json)
                .with_context(|| format!("{}: generation_config.json is not what it should be", self.name())),
            None => Ok(GenerationConfig::default()),
        }
    }

    /// Content of an optional file.
    fn text(&self, name: &str) -> anyhow::Result<Option<Cow<'static, str>>> {
        match self {
            Self::BuiltIn(files) => Ok(match name {
                "tokenizer_config.json" => Some(files.tokenizer_config.into()),
                "generation_config.json" => Some(files.generation_config.into()),
                _ => None,
            }),
            Self::Folder(folder) => {
                let path = folder.join(name);
                match fs::read_to_string(&path) {
                    Ok(text) => Ok(Some(text.into())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error).with_context(|| format!("{}: cannot read the file", path.display())),
                }
            }
        }
    }
}

/// The path that a command's argument means: itself if it exists, or else the folder of the model of that name in the
/// cache.
pub fn locate(path: &Path) -> anyhow::Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let shown = path.display();
    match missing(path) {
        None => match name(path).and_then(|name| Cache::from_env().ok()?.find(&name)) {
            Some(folder) => Ok(folder),
            None => {
                bail!(
                    "{shown}: there is no such folder; a model is a checkpoint folder or a run folder of `jevons train`"
                )
            }
        },
        Some(name) => bail!(
            "{shown}: there is no such folder, and no model of that name in the cache; this fetches it: jevons pull {name}"
        ),
    }
}

/// The same, but a path that cannot be a model's name is left to the caller.
pub fn locate_named(path: &Path) -> anyhow::Result<PathBuf> {
    if name(path).is_some() { locate(path) } else { Ok(path.to_owned()) }
}

/// The model's name, if the argument can only mean a model of a hub, and it is not in the cache.
pub fn missing(path: &Path) -> Option<Spec> {
    let name = name(path).filter(|_| !path.exists())?;
    match Cache::from_env() {
        Ok(cache) if cache.find(&name).is_some() => None,
        _ => Some(name),
    }
}

/// The argument as `org/name` or `org/name@revision`.
fn name(path: &Path) -> Option<Spec> {
    path.to_str()?.parse().ok()
}

/// The tokenizer of a folder, `None` if it has none.
pub fn tokenizer_of_folder(folder: &Path) -> anyhow::Result<Option<Tokenizer>> {
    let path = folder.join("tokenizer.json");
    if path.exists() { Ok(Some(Tokenizer::from_file(path)?)) } else { Ok(None) }
}
