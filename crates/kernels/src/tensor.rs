//! Typed views: what operations take and return.

use half::bf16;

use crate::{
    gemm::Out,
    math::{from_bf16, to_bf16},
    rows,
};

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
#[derive(Debug, PartialEq)]
pub enum Storage {
    /// f32 elements.
    F32(Vec<f32>),
    /// bf16 elements.
    Bf16(Vec<bf16>),
}

fn copy<E: Element>(x: &[E]) -> Vec<E> {
    rows::make_flat(x.len(), |first, y| y.copy_from_slice(&x[first..][..y.len()]))
}

fn map<E: Element, F: Element>(x: &[E], f: impl Fn(E) -> F + Sync) -> Vec<F> {
    rows::make_flat(x.len(), |first, y| y.iter_mut().zip(&x[first..]).for_each(|(y, x)| *y = f(*x)))
}

impl Clone for Storage {
    fn clone(&self) -> Self {
        match self {
            Self::F32(x) => Self::F32(copy(x)),
            Self::Bf16(x) => Self::Bf16(copy(x)),
        }
    }
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
            Dtype::F32 => Storage::F32(rows::make_flat(rows * cols, |_, _| {})),
            Dtype::Bf16 => Storage::Bf16(rows::make_flat(rows * cols, |_, _| {})),
        };
        Self { storage, rows, cols }
    }

    /// Of whichever type.
    pub(crate) fn of<E: Element>(data: Vec<E>, rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        let storage = match E::DTYPE {
            Dtype::F32 => Storage::F32(bytemuck::cast_vec(data)),
            Dtype::Bf16 => Storage::Bf16(bytemuck::cast_vec(data)),
        };
        Self { storage, rows, cols }
    }

    /// Rows made by `f(first row, rows)`, see [`rows::make`].
    pub(crate) fn make<E: Element>(rows: usize, cols: usize, f: impl Fn(usize, &mut [E]) + Sync) -> Self {
        Self::of(rows::make(rows, cols, f), rows, cols)
    }

    /// From f32 elements, row by row.
    pub fn from_f32(data: Vec<f32>, cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} elements in rows of {cols}", data.len());
        Self { rows: data.len() / cols, cols, storage: Storage::F32(data) }
    }

    /// The same numbers in another format, rounded to nearest even.
    pub fn to_dtype(&self, dtype: Dtype) -> Self {
        let storage = match (&self.storage, dtype) {
            (Storage::F32(x), Dtype::Bf16) => Storage::Bf16(map(x, to_bf16)),
            (Storage::Bf16(x), Dtype::F32) => Storage::F32(map(x, from_bf16)),
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

/// A tensor that products are about to write.
pub(crate) struct Blank {
    /// Without elements yet, but with the memory for them.
    storage: Storage,
    rows: usize,
    cols: usize,
}

impl Blank {
    pub fn new(dtype: Dtype, rows: usize, cols: usize) -> Self {
        let storage = match dtype {
            Dtype::F32 => Storage::F32(Vec::with_capacity(rows * cols)),
            Dtype::Bf16 => Storage::Bf16(Vec::with_capacity(rows * cols)),
        };
        Self { storage, rows, cols }
    }

    /// Where the products go.
    pub fn out(&mut self) -> Out {
        match &mut self.storage {
            Storage::F32(x) => Out::F32(x.as_mut_ptr()),
            Storage::Bf16(x) => Out::Bf16(x.as_mut_ptr()),
        }
    }

    /// # Safety
    /// Every element has been written.
    pub unsafe fn written(self) -> Tensor {
        let Self { mut storage, rows, cols } = self;
        // SAFETY: the memory is there since `new`, and the caller has written it.
        unsafe {
            match &mut storage {
                Storage::F32(x) => x.set_len(rows * cols),
                Storage::Bf16(x) => x.set_len(rows * cols),
            }
        }
        Tensor { storage, rows, cols }
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
