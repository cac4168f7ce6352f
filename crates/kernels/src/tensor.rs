//! Typed views: what operations take and return.

use half::bf16;

use crate::math::{from_bf16, to_bf16};

/// Number format of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// The upper half of binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The elements of a [`Tensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    /// f32 elements.
    F32(Vec<f32>),
    /// bf16 elements.
    Bf16(Vec<bf16>),
}

/// A row-major matrix `[rows, cols]`; activations are `[T, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The elements, row by row.
    pub storage: Storage,
    /// Number of rows, usually tokens.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl Tensor {
    /// All zero.
    pub fn zeros(dtype: Dtype, rows: usize, cols: usize) -> Self {
        let storage = match dtype {
            Dtype::F32 => Storage::F32(vec![0.0; rows * cols]),
            Dtype::Bf16 => Storage::Bf16(bytemuck::zeroed_vec(rows * cols)),
        };
        Self { storage, rows, cols }
    }

    /// From f32 elements, row by row.
    pub fn from_f32(data: Vec<f32>, cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} elements in rows of {cols}", data.len());
        Self { rows: data.len() / cols, cols, storage: Storage::F32(data) }
    }

    /// The same numbers in another format, rounded to nearest even.
    pub fn to_dtype(&self, dtype: Dtype) -> Self {
        let storage = match (&self.storage, dtype) {
            (Storage::F32(x), Dtype::Bf16) => Storage::Bf16(x.iter().map(|x| to_bf16(*x)).collect()),
            (Storage::Bf16(x), Dtype::F32) => Storage::F32(x.iter().map(|x| from_bf16(*x)).collect()),
            (same, _) => same.clone(),
        };
        Self { storage, rows: self.rows, cols: self.cols }
    }

    /// Number format of the elements.
    pub fn dtype(&self) -> Dtype {
        match self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype().size()
    }

    /// The elements of an f32 tensor.
    pub fn f32(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(x) => x,
            Storage::Bf16(_) => panic!("an f32 tensor was promised, this one is bf16"),
        }
    }

    /// The elements of an f32 tensor.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::F32(x) => x,
            Storage::Bf16(_) => panic!("an f32 tensor was promised, this one is bf16"),
        }
    }

    /// All elements as f32.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        match &self.storage {
            Storage::F32(x) => x.clone(),
            Storage::Bf16(x) => x.iter().map(|x| from_bf16(*x)).collect(),
        }
    }

    /// One element as f32.
    pub fn get(&self, row: usize, col: usize) -> f32 {
        assert!(col < self.cols);
        match &self.storage {
            Storage::F32(x) => x[row * self.cols + col],
            Storage::Bf16(x) => from_bf16(x[row * self.cols + col]),
        }
    }
}

/// An element type of a tensor: lets a kernel be written once for both.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// Which.
    const DTYPE: Dtype;
    /// Exact.
    fn widen(self) -> f32;
    /// Rounded to nearest even.
    fn narrow(x: f32) -> Self;
    /// The elements of a tensor that has this type.
    fn slice(t: &Tensor) -> &[Self];
    /// The same, to write to.
    fn slice_mut(t: &mut Tensor) -> &mut [Self];
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
    fn slice(t: &Tensor) -> &[Self] {
        t.f32()
    }
    fn slice_mut(t: &mut Tensor) -> &mut [Self] {
        t.f32_mut()
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn widen(self) -> f32 {
        from_bf16(self)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        to_bf16(x)
    }
    fn slice(t: &Tensor) -> &[Self] {
        match &t.storage {
            Storage::Bf16(x) => x,
            Storage::F32(_) => panic!("a bf16 tensor was promised, this one is f32"),
        }
    }
    fn slice_mut(t: &mut Tensor) -> &mut [Self] {
        match &mut t.storage {
            Storage::Bf16(x) => x,
            Storage::F32(_) => panic!("a bf16 tensor was promised, this one is f32"),
        }
    }
}

/// Runs the body with the type alias `$E` bound to the element type of a dtype.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::Dtype::F32 => {
                type $E = f32;
                $body
            }
            $crate::tensor::Dtype::Bf16 => {
                type $E = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;
