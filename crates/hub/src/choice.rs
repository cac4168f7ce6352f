//! Which files of a repository are needed.
//!
//! A repository often holds the same weights several times, and formats that run code when they are opened. What is
//! needed is little: config, tokenizer, chat template, weights in safetensors, licence, readme.

use crate::{HubError, Listing, RemoteFile};

/// Top-level files that are needed if they exist.
const NAMES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// The first letters of top-level files for people.
const FOR_PEOPLE: [&str; 4] = ["license", "licence", "notice", "readme"];

/// Endings of files that run code when they are opened the usual way: never fetched.
const BARRED: [&str; 20] = [
    ".bin", ".ckpt", ".dll", ".dylib", ".exe", ".h5", ".ipynb", ".jar", ".joblib", ".js", ".npy", ".npz", ".pickle",
    ".pkl", ".pt", ".pth", ".py", ".pyc", ".sh", ".so",
];

/// The user's wishes. By default what a model needs.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// `*` is any text, `/` included; `?` is one character.
#[derive(Clone, Debug)]
struct Pattern(Vec<char>);

impl Choice {
    /// With `include`, files that match one of it instead of the default; in any case none that match `exclude`.
    ///
    /// # Errors
    /// [`HubError::Pattern`].
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, HubError> {
        let patterns = |texts: &[String]| texts.iter().map(|t| Pattern::new(t)).collect::<Result<Vec<_>, _>>();
        Ok(Self { include: patterns(include)?, exclude: patterns(exclude)? })
    }

    /// The files to fetch, and how many were wished for but are never fetched.
    ///
    /// # Errors
    /// [`HubError::Nothing`] if none is left, or a default choice has no weights.
    pub(crate) fn of<'l>(&self, listing: &'l Listing) -> Result<(Vec<&'l RemoteFile>, usize), HubError> {
        let nothing = |why| HubError::Nothing { repo: listing.repo.to_string(), why };
        let (mut files, mut barred) = (Vec::new(), 0);
        let all = listing.files.iter().filter(|f| !self.exclude.iter().any(|p| p.matches(&f.path)));
        if self.include.is_empty() {
            let shards = listing.files.iter().any(|f| is_shard(&f.path));
            files.extend(all.filter(|f| is_needed(&f.path, shards)));
            if self.exclude.is_empty() && !files.iter().any(|f| is_weights(&f.path)) {
                return Err(nothing(no_weights(listing)));
            }
        } else {
            for file in all.filter(|f| self.include.iter().any(|p| p.matches(&f.path))) {
                if is_barred(&file.path) { barred += 1 } else { files.push(file) }
            }
        }
        match (files.is_empty(), barred) {
            (false, _) => Ok((files, barred)),
            (true, 0) => Err(nothing(format!("none of its {} files is chosen", listing.files.len()))),
            (true, n) => {
                Err(nothing(format!("the chosen files ({n}) can run code when opened, and are never fetched")))
            }
        }
    }
}

/// Whether a file holds weights, by its name.
pub fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors")
}

fn no_weights(listing: &Listing) -> String {
    let ends = |end: &str| listing.files.iter().any(|f| f.path.ends_with(end));
    let instead = if ends(".bin") || ends(".pt") || ends(".pth") {
        "it has pickled weights, which can run code; look for a model of the same name in safetensors"
    } else if ends(".gguf") {
        "it has GGUF files; look for the model that they were made from"
    } else {
        "--include '*' fetches it all the same"
    };
    format!("it has no *.safetensors at its top; {instead}")
}

/// `shards`: the weights have their usual names, so that other ones are duplicates.
fn is_needed(path: &str, shards: bool) -> bool {
    let lower = path.to_lowercase();
    if path.contains('/') || is_barred(path) {
        return false;
    }
    let weights = if shards { is_shard(path) } else { is_weights(path) };
    NAMES.contains(&path) || FOR_PEOPLE.iter().any(|start| lower.starts_with(start)) || weights
}

/// `model.safetensors` or `model-00001-of-00002.safetensors`.
fn is_shard(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("model").and_then(|p| p.strip_suffix(".safetensors")) else { return false };
    let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    rest.is_empty()
        || rest.strip_prefix('-').and_then(|r| r.split_once("-of-")).is_some_and(|(i, n)| number(i) && number(n))
}

fn is_barred(path: &str) -> bool {
    let lower = path.to_lowercase();
    BARRED.iter().any(|end| lower.ends_with(end))
}

impl Pattern {
    fn new(text: &str) -> Result<Self, HubError> {
        let bad = |why| Err(HubError::Pattern { given: text.into(), why });
        match text {
            "" => bad("it is empty"),
            t if t.contains(['[', ']', '{', '}']) => bad("only * and ? have a meaning"),
            t => Ok(Self(t.chars().collect())),
        }
    }

    /// Goes back to the last `*` only, which suffices: time is at most the product of the lengths.
    fn matches(&self, path: &str) -> bool {
        let (pattern, path) = (&self.0, path.chars().collect::<Vec<_>>());
        let (mut p, mut t) = (0, 0);
        let mut star = None;
        while t < path.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(c) if *c == '?' || *c == path[t] => (p, t) = (p + 1, t + 1),
                _ => match star {
                    Some((at, from)) => {
                        star = Some((at, from + 1));
                        (p, t) = (at + 1, from + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == '*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Published;

    fn listing(paths: &[&str]) -> Listing {
        let hash = Published::parse(&"0".repeat(64)).unwrap();
        let file = |p: &&str| RemoteFile { path: (*p).into(), bytes: 1, hash: hash.clone() };
        let spec: crate::Spec = "a/b@main".parse().unwrap();
        Listing {
            repo: spec.repo,
            revision: spec.revision.unwrap(),
            commit: "0".repeat(40),
            files: paths.iter().map(file).collect(),
        }
    }

    fn chosen(include: &[&str], exclude: &[&str], paths: &[&str]) -> Result<Vec<String>, String> {
        let own = |t: &[&str]| t.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let listing = listing(paths);
        let choice = Choice::new(&own(include), &own(exclude)).map_err(|e| e.to_string())?;
        let (files, _) = choice.of(&listing).map_err(|e| e.to_string())?;
        Ok(files.iter().map(|f| f.path.clone()).collect())
    }

    const REPO: [&str; 16] = [
        ".gitattributes",
        "LICENSE",
        "README.md",
        "config.json",
        "consolidated.safetensors",
        "figures/benchmark.jpg",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.Q4.gguf",
        "model.safetensors.index.json",
        "modeling_deepseek.py",
        "onnx/model.onnx",
        "original/model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "training_args.bin",
    ];

    #[test]
    fn by_default_each_thing_is_fetched_once_and_no_code() {
        let want = [1, 2, 3, 6, 7, 9, 14].map(|i| REPO[i]);
        assert_eq!(chosen(&[], &[], &REPO).unwrap(), want);
        assert_eq!(chosen(&[], &[], &["weights.safetensors"]).unwrap(), ["weights.safetensors"]);
    }

    #[test]
    fn patterns_replace_the_default_but_never_bring_code() {
        assert_eq!(chosen(&["*.json"], &["tok*"], &REPO).unwrap(), ["config.json", "model.safetensors.index.json"]);
        assert_eq!(chosen(&[], &["*.safetensors"], &REPO).unwrap().len(), 5);
        assert_eq!(chosen(&["*"], &[], &REPO).unwrap().len(), 13);
        assert!(chosen(&["*.bin"], &[], &REPO).unwrap_err().contains("can run code"));
        assert!(chosen(&["x"], &[], &REPO).unwrap_err().contains("none of its 16 files"));
        assert!(chosen(&["[a]"], &[], &REPO).unwrap_err().contains("only * and ?"));
        assert!(chosen(&[""], &[], &REPO).is_err());
    }

    #[test]
    fn a_model_without_safe_weights_says_what_it_has() {
        assert!(chosen(&[], &[], &["config.json", "pytorch_model.bin"]).unwrap_err().contains("pickled"));
        assert!(chosen(&[], &[], &["config.json", "x.gguf"]).unwrap_err().contains("GGUF"));
        assert!(chosen(&[], &[], &[]).is_err());
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let matches = |p: &str, t: &str| Pattern::new(p).unwrap().matches(t);
        for (p, t) in
            [("*", ""), ("a*c", "abbc"), ("*b*", "abc"), ("?", "ü"), ("*/x", "a/b/x"), ("a**", "a"), ("*ab", "aab")]
        {
            assert!(matches(p, t), "{p} {t}");
        }
        for (p, t) in [("a", "ab"), ("?", ""), ("a*c", "acb"), ("*.json", "json"), ("ab", "a")] {
            assert!(!matches(p, t), "{p} {t}");
        }
        // Quick even where a naive matcher takes forever.
        assert!(!matches(&"*a".repeat(50), &"a".repeat(40).replace("aaaa", "aaab")));
    }
}
