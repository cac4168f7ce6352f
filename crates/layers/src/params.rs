//! Parameters by number: layers hold ids, so that a weight can be frozen, shared or live elsewhere.

use std::ops::Index;

use jevons_kernels::{Dtype, Matrix};

/// A parameter of a model: its place in the order of the published layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub usize);

/// A compute weight.
#[derive(Clone)]
pub enum Param {
    /// A packed matrix `[N, K]`.
    Matrix(Matrix),
    /// A gain or bias, f32 (holding bf16 numbers where the model computes in bf16).
    Vector(Vec<f32>),
}

/// All compute weights of a model.
#[derive(Clone)]
pub struct Weights {
    params: Vec<Param>,
    dtype: Dtype,
}

impl Weights {
    /// In the order of their ids.
    pub fn new(dtype: Dtype, params: Vec<Param>) -> Self {
        Self { params, dtype }
    }

    /// Format of matrices and of the activations between layers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// A gain or bias.
    pub fn vector(&self, id: ParamId) -> &[f32] {
        match &self.params[id.0] {
            Param::Vector(v) => v,
            Param::Matrix(_) => panic!("parameter {} is a matrix", id.0),
        }
    }

    /// All of them, in the order of their ids.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Replaces one.
    pub fn set(&mut self, id: ParamId, param: Param) {
        self.params[id.0] = param;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.params
            .iter()
            .map(|p| match p {
                Param::Matrix(m) => m.bytes(),
                Param::Vector(v) => v.len() * 4,
            })
            .sum()
    }
}

impl Index<ParamId> for Weights {
    type Output = Matrix;
    fn index(&self, id: ParamId) -> &Matrix {
        match &self.params[id.0] {
            Param::Matrix(m) => m,
            Param::Vector(_) => panic!("parameter {} is a vector", id.0),
        }
    }
}

/// Gradients, f32 row-major, `None` for frozen parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Grads(Vec<Option<Vec<f32>>>);

impl Grads {
    /// Zeros of the given lengths; `None` stays `None`.
    pub fn zeros(lengths: impl IntoIterator<Item = Option<usize>>) -> Self {
        Self(lengths.into_iter().map(|len| len.map(|len| vec![0.0; len])).collect())
    }

    /// One gradient, if its parameter is trained.
    pub fn get(&self, id: ParamId) -> Option<&[f32]> {
        self.0[id.0].as_deref()
    }

    /// One gradient to add to, if its parameter is trained.
    pub fn get_mut(&mut self, id: ParamId) -> Option<&mut [f32]> {
        self.0[id.0].as_deref_mut()
    }

    /// Calls `f` with the gradients of several distinct parameters at once.
    pub fn with_many<R>(&mut self, ids: &[ParamId], f: impl FnOnce(Vec<Option<&mut [f32]>>) -> R) -> R {
        let mut taken: Vec<_> = ids.iter().map(|id| self.0[id.0].take()).collect();
        let result = f(taken.iter_mut().map(|g| g.as_deref_mut()).collect());
        ids.iter().zip(taken).for_each(|(id, g)| self.0[id.0] = g);
        result
    }

    /// Adds another set, element by element.
    pub fn add(&mut self, other: &Self) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            if let (Some(a), Some(b)) = (a, b) {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            }
        }
    }

    /// Back to zero.
    pub fn clear(&mut self) {
        self.0.iter_mut().flatten().for_each(|g| g.fill(0.0));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.iter().flatten().map(|g| g.len() * 4).sum()
    }
}
