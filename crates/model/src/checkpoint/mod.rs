//! Weights on disk: one `model.safetensors`, or shards with `model.safetensors.index.json`.
//!
//! Source of the format: the safetensors specification (github.com/huggingface/safetensors, "Format"). A file is `n:
//! u64` little-endian, then `n` bytes of JSON (`{"NAME": {"dtype", "shape", "data_offsets": [begin, end]},
//! "__metadata__": {...}}`), then the bytes of the tensors without holes. Files come from strangers: every length and
//! offset is checked before use, and a hostile file is an error, never a panic or a large allocation. Weights are
//! memory-mapped, so opening a checkpoint costs its header only.

mod convert;
mod error;
mod header;
mod index;
mod rows;
mod write;

pub use convert::TensorView;
pub use error::CheckpointError;
pub(crate) use index::MAX_SHARDS;
pub use rows::Rows;
pub(crate) use rows::{RowOrder, Stored, scale_name};
/// Number format of a stored tensor, named as in the file (`BF16`, `F32`, `F8_E4M3`, ...).
pub use safetensors::Dtype as StoredDtype;
pub use write::{SaveDtype, TensorOut, save_model, write_safetensors};

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use half::bf16;
use jevons_sys::MappedFile;

use crate::Config;

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint, of one file or of shards. `'a` is the life of borrowed bytes, `'static` for files.
pub struct Checkpoint<'a> {
    /// The folder, the file, or a name for borrowed bytes.
    path: PathBuf,
    files: Vec<WeightFile<'a>>,
    /// By file, then by place in it.
    tensors: Vec<Entry>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

struct WeightFile<'a> {
    path: PathBuf,
    bytes: Bytes<'a>,
}

pub(crate) enum Bytes<'a> {
    Mapped(MappedFile),
    Borrowed(&'a [u8]),
}

impl Bytes<'_> {
    pub fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Borrowed(bytes) => bytes,
        }
    }
}

struct Entry {
    file: usize,
    tensor: header::Tensor,
}

impl fmt::Debug for Checkpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors in {} files)", self.path.display(), self.tensors.len(), self.files.len())
    }
}

impl Checkpoint<'static> {
    /// Opens the weights of a model folder: `model.safetensors`, or else the shards that `model.safetensors.index.json`
    /// lists.
    ///
    /// # Errors
    /// [`CheckpointError`] if neither is there, or anything about the files is wrong.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref();
        if dir.join(SINGLE).exists() {
            Self::open_file(dir.join(SINGLE))
        } else if dir.join(INDEX).exists() {
            Self::open_shards(dir)
        } else {
            Err(CheckpointError::no_weights(dir))
        }
    }

    /// Opens one safetensors file, whatever its name.
    ///
    /// # Errors
    /// [`CheckpointError`] if anything about the file is wrong.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path.into(), Bytes::Mapped(map(path)?))?;
        Ok(checkpoint)
    }

    fn open_shards(dir: &Path) -> Result<Self, CheckpointError> {
        let index_path = dir.join(INDEX);
        let index = index::Index::read(&index_path)?;
        let mut checkpoint = Self::empty(dir);
        for shard in index.shards() {
            let path = dir.join(shard);
            let bytes = Bytes::Mapped(map(&path)?);
            checkpoint.add(path, bytes)?;
        }
        for (name, shard) in &index.weight_map {
            let found = checkpoint.by_name.get(name).map(|&i| &checkpoint.files[checkpoint.tensors[i].file].path);
            let path = dir.join(shard);
            if found != Some(&path) {
                return Err(CheckpointError::NotInShard { path, name: name.clone(), index: index_path });
            }
        }
        Ok(checkpoint)
    }
}

impl<'a> Checkpoint<'a> {
    /// Reads the bytes of one safetensors file, for instance of a model embedded in the program.
    ///
    /// # Errors
    /// [`CheckpointError`] if anything about them is wrong; the path in its message is `<memory>`.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let path = Path::new("<memory>");
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path.into(), Bytes::Borrowed(bytes))?;
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Self {
        let (files, tensors, by_name, metadata) = Default::default();
        Self { path: path.into(), files, tensors, by_name, metadata }
    }

    fn add(&mut self, path: PathBuf, bytes: Bytes<'a>) -> Result<(), CheckpointError> {
        let header = header::parse(&path, bytes.get())?;
        if let Bytes::Mapped(map) = &bytes {
            map.release(0..map.len()); // What was parsed is copied.
        }
        for tensor in header.tensors {
            if let Some(&first) = self.by_name.get(&tensor.name) {
                let other = self.files[self.tensors[first].file].path.clone();
                return Err(CheckpointError::Duplicate { path, name: tensor.name, other });
            }
            self.by_name.insert(tensor.name.clone(), self.tensors.len());
            self.tensors.push(Entry { file: self.files.len(), tensor });
        }
        self.metadata.extend(header.metadata);
        self.files.push(WeightFile { path, bytes });
        Ok(())
    }

    /// The folder or file that was opened; `<memory>` for borrowed bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// The names of all tensors, by file and by place in it.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|e| e.tensor.name.as_str())
    }

    /// All tensors, by file and by place in it.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|e| self.view(e))
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&i| self.view(&self.tensors[i]))
    }

    fn view<'s>(&'s self, entry: &'s Entry) -> TensorView<'s> {
        let (file, tensor) = (&self.files[entry.file], &entry.tensor);
        TensorView {
            name: &tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
            bytes: &file.bytes.get()[tensor.range.clone()],
            path: &file.path,
        }
    }

    /// Free texts of the file, of all shards together; `format: pt` where PyTorch tools are to open it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|e| e.tensor.range.len() as u64).sum()
    }

    /// The format that most bytes are in; `None` without tensors.
    pub fn stored_dtype(&self) -> Option<StoredDtype> {
        let mut bytes = BTreeMap::<StoredDtype, u64>::new();
        for Entry { tensor, .. } in &self.tensors {
            *bytes.entry(tensor.dtype).or_default() += tensor.range.len() as u64;
        }
        bytes.into_iter().max_by_key(|&(_, n)| n).map(|(dtype, _)| dtype)
    }

    /// Whether most bytes are f32, so that computing in bf16 would lose something.
    pub fn is_mostly_f32(&self) -> bool {
        self.stored_dtype() == Some(StoredDtype::F32)
    }

    /// A tensor of this shape as f32: exact from F32, BF16 and F16; `code · scale` from a matrix in block FP8 (see
    /// [`Checkpoint::rows`]).
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Shape`]; [`CheckpointError::Dtype`] for any other format;
    /// [`CheckpointError::NoScales`], [`CheckpointError::ScaleShape`] and [`CheckpointError::Value`] for FP8 that makes no
    /// sense.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        self.rows(name, shape)?.read_all()
    }

    /// The same as bf16: exact from BF16, else rounded to nearest even.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn read_bf16(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, CheckpointError> {
        Ok(self.read_f32(name, shape)?.into_iter().map(bf16::from_f32).collect())
    }

    /// A tensor of this shape.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`] or [`CheckpointError::Shape`].
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, CheckpointError> {
        let view =
            self.get(name).ok_or_else(|| CheckpointError::Missing { path: self.path.clone(), name: name.into() })?;
        if view.shape != shape {
            return Err(CheckpointError::Shape {
                path: view.path.into(),
                name: name.into(),
                found: view.shape.into(),
                expected: shape.into(),
            });
        }
        Ok(view)
    }

    /// Tensors that a model of this config does not use, sorted: rotary tables of old tools, a tied head stored twice, scales of
    /// what is not FP8. Worth a warning, not an error.
    pub fn unexpected(&self, config: &Config) -> Vec<String> {
        let copies = config.mtp_copies().into_iter().map(|(name, _)| name);
        let mut known: HashSet<String> = config.tensors().into_iter().map(|t| t.name).chain(copies).collect();
        let scaled = known.iter().filter(|name| self.get(name).is_some_and(|t| t.dtype == StoredDtype::F8_E4M3));
        let scales: Vec<String> = scaled.map(|name| rows::scale_name(name)).collect();
        known.extend(scales);
        let mut names: Vec<String> = self.names().filter(|&name| !known.contains(name)).map(str::to_owned).collect();
        names.sort();
        names
    }
}

fn map(path: &Path) -> Result<MappedFile, CheckpointError> {
    MappedFile::open(path).map_err(|error| CheckpointError::Read { path: path.into(), error })
}

/// A name from a file, fit to print: escaped, and not a book.
fn printable(name: &str) -> Cow<'_, str> {
    if name.len() <= 200 && name.chars().all(|c| !c.is_control()) {
        return name.into();
    }
    let start: String = name.chars().take(100).collect();
    format!("{}…", start.escape_debug()).into()
}
