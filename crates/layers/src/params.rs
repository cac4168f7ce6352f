//! Parameters by number: layers hold ids, so that a weight can be frozen, shared or live elsewhere.

use std::ops::Index;

use jevons_kernels::{Dtype, LatentHeads, Matrix};

use crate::Fp8;

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
    /// `kv_b_proj` of a latent attention in its absorbed form.
    LatentUp(LatentUp),
}

/// `kv_b_proj` `[H·(Dn + Dv), R]` cut by heads, so that queries can be moved into the latent space and sums out of it.
#[derive(Clone)]
pub struct LatentUp {
    /// Keys, transposed: `[R, Dn]` per head.
    pub keys: Vec<Matrix>,
    /// Values: `[Dv, R]` per head.
    pub values: Vec<Matrix>,
}

impl LatentUp {
    /// From f32 values `[H·(Dn + Dv), R]`, row-major.
    pub fn new(dtype: Dtype, values: &[f32], heads: LatentHeads, latent: usize) -> Self {
        let LatentHeads { nope, v, .. } = heads;
        assert_eq!(values.len(), heads.heads * (nope + v) * latent);
        let parts = values.chunks_exact((nope + v) * latent).map(|head| head.split_at(nope * latent));
        let (keys, values) = parts
            .map(|(k, v_rows)| {
                let transposed: Vec<f32> =
                    (0..latent).flat_map(|r| (0..nope).map(move |n| k[n * latent + r])).collect();
                (Matrix::from_f32(dtype, &transposed, latent, nope), Matrix::from_f32(dtype, v_rows, v, latent))
            })
            .unzip();
        Self { keys, values }
    }

    /// The values that it was made of, `[H·(Dn + Dv), R]` row-major, as f32 (rounded to the format of the matrices).
    pub fn to_vec_f32(&self) -> Vec<f32> {
        let mut all = Vec::new();
        for (k, v) in self.keys.iter().zip(&self.values) {
            let (latent, nope, k) = (k.n(), k.k(), k.to_vec_f32());
            all.extend((0..nope).flat_map(|n| (0..latent).map(move |r| (n, r))).map(|(n, r)| k[r * nope + n]));
            all.extend(v.to_vec_f32());
        }
        all
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(Matrix::bytes).sum()
    }
}

/// All compute weights of a model.
#[derive(Clone)]
pub struct Weights {
    params: Vec<Param>,
    dtype: Dtype,
    fp8: Option<Fp8>,
}

impl Weights {
    /// In the order of their ids.
    pub fn new(dtype: Dtype, params: Vec<Param>) -> Self {
        Self { params, dtype, fp8: None }
    }

    /// Lets linears with matrices of codes quantise the other operand too, `None`: compute in bf16.
    pub fn with_fp8(self, fp8: Option<Fp8>) -> Self {
        Self { fp8, ..self }
    }

    /// How linears in FP8 compute; `None`: they take bf16 activations.
    pub fn fp8(&self) -> Option<Fp8> {
        self.fp8
    }

    /// How the linear with this matrix computes in FP8; `None`: it takes bf16 activations.
    pub fn fp8_of(&self, linear: ParamId) -> Option<Fp8> {
        self.fp8.filter(|_| self.is_fp8(linear))
    }

    /// Whether this is a matrix of FP8 codes.
    pub fn is_fp8(&self, id: ParamId) -> bool {
        matches!(&self.params[id.0], Param::Matrix(m) if m.is_fp8())
    }

    /// Format of matrices and of the activations between layers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// A gain or bias.
    pub fn vector(&self, id: ParamId) -> &[f32] {
        match &self.params[id.0] {
            Param::Vector(v) => v,
            Param::Matrix(_) | Param::LatentUp(_) => panic!("parameter {} is a matrix", id.0),
        }
    }

    /// An up-projection of an absorbed latent attention.
    pub fn latent_up(&self, id: ParamId) -> &LatentUp {
        match &self.params[id.0] {
            Param::LatentUp(up) => up,
            _ => panic!("parameter {} is not cut by heads", id.0),
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

    /// One to change, if it is a matrix.
    pub fn matrix_mut(&mut self, id: ParamId) -> Option<&mut Matrix> {
        match &mut self.params[id.0] {
            Param::Matrix(m) => Some(m),
            Param::Vector(_) | Param::LatentUp(_) => None,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.params
            .iter()
            .map(|p| match p {
                Param::Matrix(m) => m.bytes(),
                Param::Vector(v) => v.len() * 4,
                Param::LatentUp(up) => up.bytes(),
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
            Param::LatentUp(_) => panic!("parameter {} is cut by heads: the model is for inference only", id.0),
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
