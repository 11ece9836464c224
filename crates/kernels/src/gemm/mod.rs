//! Matrix products with a fused epilogue: `C = activation(A * B + bias) + residual`.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::blocks::Decode;
use crate::error::{KernelError, at_least, exactly, extent, product};
use crate::{BlockFormat, Isa};

pub(crate) mod driver;
mod few_rows;
pub(crate) mod finish;
mod gated;
pub(crate) mod pack;
pub(crate) mod params;
pub(crate) mod tasks;
pub(crate) mod tile;

use driver::{Product, SharedOut};
use few_rows::FewRows;
use finish::Finish;
use gated::Gated;
use pack::{Lhs, MatLhs, TransposedLhs, Weights};

/// A batch of row-major `f32` matrices: element `(b, i, j)` is `data[b * batch_stride + i * row_stride + j]`, or
/// `data[b * batch_stride + j * row_stride + i]` when transposed.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Elements from one row in memory to the next.
    pub row_stride: usize,
    /// Elements from one matrix to the next; 0 shares one matrix among the batch.
    pub batch_stride: usize,
    /// The matrix lies in memory as its transpose. Only a left-hand side may.
    pub transposed: bool,
}

impl<'a> MatRef<'a> {
    /// One matrix, or one shared by the whole batch, with rows of `cols` elements and no gaps.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        Self {
            data,
            row_stride: cols,
            batch_stride: 0,
            transposed: false,
        }
    }

    /// A left-hand side `[m, k]` that lies in memory as `[k, m]` with no gaps: `A` of `C = X^T * B` is
    /// `transposed(x, m)`. Shared by the batch.
    pub fn transposed(data: &'a [f32], m: usize) -> Self {
        Self {
            transposed: true,
            ..Self::new(data, m)
        }
    }

    /// The same with one matrix every `batch_stride` elements.
    pub fn batched(self, batch_stride: usize) -> Self {
        Self {
            batch_stride,
            ..self
        }
    }
}

/// The output's side of [`MatRef`]; rows and matrices must not overlap.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The elements; those between rows are left alone.
    pub data: &'a mut [f32],
    /// Elements from one row to the next; at least the number of columns.
    pub row_stride: usize,
    /// Elements from one matrix to the next; ignored when the batch is 1.
    pub batch_stride: usize,
}

impl<'a> MatMut<'a> {
    /// `batch` matrices of `rows` x `cols` with no gaps.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self {
            data,
            row_stride: cols,
            batch_stride: rows.saturating_mul(cols),
        }
    }
}

/// Elements of a right-hand side or a weight, in their storage type.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum RhsData<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// 8-bit floats as `torch.float8_e4m3fn`: no infinities, 0x7f and 0xff are NaN.
    F8E4M3(&'a [u8]),
    /// Whole blocks of quantised numbers; strides and lengths count numbers, not bytes.
    Blocks(BlockFormat, &'a [u8]),
}

impl RhsData<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(d) => d.len(),
            Self::F16(d) => d.len(),
            Self::BF16(d) => d.len(),
            Self::F8E4M3(d) => d.len(),
            Self::Blocks(format, d) => d.len() / format.block_bytes() * format.block_len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i`, widened. For oracles and small loops.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(d) => d[i],
            Self::F16(d) => d[i].to_f32(),
            Self::BF16(d) => d[i].to_f32(),
            Self::F8E4M3(d) => crate::blocks::decode_f8_e4m3(d[i]),
            Self::Blocks(..) => {
                let mut out = [0.0];
                Isa::best().run(Decode {
                    data: *self,
                    at: i,
                    out: &mut out,
                });
                out[0]
            }
        }
    }

    /// Whether blocks are whole.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        match self {
            Self::Blocks(format, d) => format.check(d.len()),
            _ => Ok(()),
        }
    }
}

/// How a right-hand side lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RhsLayout {
    /// `[n, k]`: a row holds the weights of one output, as in PyTorch's `Linear` (`C = A * B^T`).
    RowsAreOutputs,
    /// `[k, n]`: the ordinary product (`C = A * B`).
    RowsAreInner,
}

/// The right-hand side of a product.
#[derive(Debug, Clone, Copy)]
pub struct Rhs<'a> {
    /// The elements.
    pub data: RhsData<'a>,
    /// Which index a row stands for.
    pub layout: RhsLayout,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one matrix to the next; 0 shares one matrix among the batch.
    pub batch_stride: usize,
}

impl<'a> Rhs<'a> {
    /// A PyTorch `Linear` weight `[n, k]` with no gaps, shared by the batch.
    pub fn weight(data: RhsData<'a>, k: usize) -> Self {
        Self {
            data,
            layout: RhsLayout::RowsAreOutputs,
            row_stride: k,
            batch_stride: 0,
        }
    }

    /// A `[k, n]` matrix with no gaps, shared by the batch.
    pub fn inner(data: RhsData<'a>, n: usize) -> Self {
        Self {
            data,
            layout: RhsLayout::RowsAreInner,
            row_stride: n,
            batch_stride: 0,
        }
    }

    /// The same with one matrix every `batch_stride` elements.
    pub fn batched(self, batch_stride: usize) -> Self {
        Self {
            batch_stride,
            ..self
        }
    }
}

/// An element-wise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x`
    #[default]
    None,
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(x)`
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`
    GeluTanh,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
}

/// What happens to a product before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to the rows: one bias `[n]`, or one for each [`rows_per_bias`](Self::rows_per_bias) rows. As wide as the
    /// right-hand side, so `2 n` when [`gated`](Self::gated).
    pub bias: Option<&'a [f32]>,
    /// How many rows share a bias, counted through the batch; 0 when all do.
    pub rows_per_bias: usize,
    /// Applied after the bias.
    pub activation: Activation,
    /// The right-hand side has `2 n` outputs, first values, then gates, and `C = value * activation(gate)`: with GELU
    /// the GEGLU of diffusers, with SiLU SwiGLU. The product `2 n` wide is never stored.
    pub gated: bool,
    /// Added last; shape of the output.
    pub residual: Option<MatRef<'a>>,
}

impl Epilogue<'_> {
    /// Outputs of the right-hand side for `n` columns of the output.
    pub fn outputs(&self, n: usize) -> usize {
        if self.gated { n.saturating_mul(2) } else { n }
    }
}

/// One batch of products `C[m, n] = activation(A[m, k] * B + bias) + residual`.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// Number of products.
    pub batch: usize,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Columns of A.
    pub k: usize,
    /// Left-hand side, `[m, k]`.
    pub a: MatRef<'a>,
    /// Right-hand side.
    pub b: Rhs<'a>,
    /// Output, `[m, n]`; every element is overwritten.
    pub c: MatMut<'a>,
    /// Bias, activation and residual.
    pub epilogue: Epilogue<'a>,
}

impl Gemm<'_> {
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let Self {
            batch,
            m,
            n,
            k,
            a,
            b,
            c,
            epilogue,
        } = self;
        let (batch, m, n, k) = (*batch, *m, *n, *k);
        if batch == 0 || m == 0 || n == 0 {
            return Ok(());
        }
        if m > 1 && c.row_stride < n {
            return Err(KernelError::Stride {
                what: "c rows",
                expected: n,
                found: c.row_stride,
            });
        }
        let matrix = extent(&[(m, c.row_stride), (n, 1)]);
        if batch > 1 && c.batch_stride < matrix {
            let found = c.batch_stride;
            return Err(KernelError::Stride {
                what: "c matrices",
                expected: matrix,
                found,
            });
        }
        at_least(
            "c",
            c.data.len(),
            extent(&[(batch, c.batch_stride), (m, c.row_stride), (n, 1)]),
        )?;
        let (rows, cols) = if a.transposed { (k, m) } else { (m, k) };
        at_least(
            "a",
            a.data.len(),
            extent(&[(batch, a.batch_stride), (rows, a.row_stride), (cols, 1)]),
        )?;
        b.data.check()?;
        let outputs = epilogue.outputs(n);
        let (rows, cols) = match b.layout {
            RhsLayout::RowsAreOutputs => (outputs, k),
            RhsLayout::RowsAreInner => (k, outputs),
        };
        at_least(
            "b",
            b.data.len(),
            extent(&[(batch, b.batch_stride), (rows, b.row_stride), (cols, 1)]),
        )?;
        if let Some(bias) = epilogue.bias {
            let per_bias = epilogue.rows_per_bias;
            let groups = match per_bias {
                0 => 1,
                rows => m.saturating_mul(batch).div_ceil(rows),
            };
            exactly("bias", bias.len(), product(&[groups, outputs]))?;
            // A matrix is to begin with a group, or to lie in one.
            if batch > 1 && per_bias > 0 && m % per_bias != 0 && per_bias % m != 0 {
                return Err(KernelError::Size {
                    what: "rows per bias",
                    expected: "divide the rows of a matrix of the batch, or be a multiple of them",
                    found: per_bias,
                });
            }
        }
        if let Some(r) = epilogue.residual {
            if r.transposed {
                return Err(KernelError::Size {
                    what: "residual (transposed)",
                    expected: "lie as the output does",
                    found: 1,
                });
            }
            let need = extent(&[(batch, r.batch_stride), (m, r.row_stride), (n, 1)]);
            at_least("residual", r.data.len(), need)?;
        }
        Ok(())
    }
}

impl Gemm<'_> {
    /// [`gemm`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`gemm`].
    pub fn run(mut self, isa: Isa) -> Result<(), KernelError> {
        self.check()?;
        if self.batch == 0 || self.m == 0 || self.n == 0 {
            return Ok(());
        }
        self.merge_batch();
        let out = SharedOut::new(self.c.data);
        let work = self.m.saturating_mul(self.n).saturating_mul(self.k);
        // Many small products are shared among the threads whole; few large ones are split each.
        if self.batch > 1 && work < params::SERIAL_WORK * 32 {
            (0..self.batch)
                .into_par_iter()
                .for_each(|b| self.one(isa, b, out));
        } else {
            (0..self.batch).for_each(|b| self.one(isa, b, out));
        }
        Ok(())
    }

    /// A batch that shares B and whose rows follow each other evenly is one product of more rows.
    fn merge_batch(&mut self) {
        let even = |row: usize, batch: usize| row.checked_mul(self.m) == Some(batch);
        let merges = self.batch > 1
            && !self.a.transposed
            && self.b.batch_stride == 0
            && even(self.a.row_stride, self.a.batch_stride)
            && even(self.c.row_stride, self.c.batch_stride)
            && self
                .epilogue
                .residual
                .is_none_or(|r| even(r.row_stride, r.batch_stride));
        if merges {
            self.m *= self.batch;
            self.batch = 1;
        }
    }

    fn one(&self, isa: Isa, batch: usize, out: SharedOut) {
        let &Self {
            m,
            n,
            k,
            a,
            b,
            ref c,
            epilogue,
            ..
        } = self;
        let from = |data: &[f32], stride: usize| (batch * stride).min(data.len());
        let data = &a.data[from(a.data, a.batch_stride)..];
        let stride = a.row_stride;
        let lhs = MatLhs { data, stride };
        let weights = Weights {
            data: b.data,
            offset: (batch * b.batch_stride).min(b.data.len()),
            layout: b.layout,
            row_stride: b.row_stride,
            taps: 1,
        };
        let outputs = epilogue.outputs(n);
        let first_bias = (batch * m).checked_div(epilogue.rows_per_bias).unwrap_or(0);
        let finish = Finish {
            bias: epilogue.bias.map(|bias| &bias[first_bias * outputs..]),
            rows_per_bias: match epilogue.rows_per_bias {
                0 => usize::MAX,
                rows if batch > 0 && rows > m => usize::MAX,
                rows => rows,
            },
            n: outputs,
            activation: epilogue.activation,
            residual: epilogue
                .residual
                .map(|r| (&r.data[from(r.data, r.batch_stride)..], r.row_stride)),
        };
        let at = if batch > 0 { batch * c.batch_stride } else { 0 };
        // SAFETY: `check` has shown that matrix `batch` lies inside C; matrices do not overlap.
        let out = unsafe { out.from(at) };
        let out_stride = c.row_stride;
        let few = m <= params::FEW_ROWS && k > 0 && b.layout == RhsLayout::RowsAreOutputs;
        if a.transposed {
            let lhs = TransposedLhs {
                data,
                stride,
                mr: isa.tile_size().0,
            };
            self.product(isa, lhs, weights, (out, out_stride), finish);
        } else if few {
            let rows = FewRows {
                m,
                n: outputs,
                k,
                lhs,
                weights,
                out,
                out_stride,
                finish,
            };
            if epilogue.gated {
                gated::few_rows(isa, rows);
            } else {
                rows.run(isa);
            }
        } else {
            self.product(isa, lhs, weights, (out, out_stride), finish);
        }
    }

    fn product<L: Lhs>(
        &self,
        isa: Isa,
        lhs: L,
        weights: Weights<'_>,
        (out, out_stride): (SharedOut, usize),
        finish: Finish<'_>,
    ) {
        let product = Product {
            m: self.m,
            n: self.n,
            channels: self.k,
            lhs,
            weights,
            out,
            out_stride,
            finish,
        };
        if self.epilogue.gated {
            Gated { product }.run(isa);
        } else {
            product.run(isa);
        }
    }
}

/// Computes a batch of products, see [`Gemm`]. With `k == 0` the product is zero and the epilogue still
/// applies.
///
/// # Errors
/// [`KernelError`] when a slice is too short for its shape or the output's rows overlap.
pub fn gemm(gemm: Gemm<'_>) -> Result<(), KernelError> {
    gemm.run(Isa::best())
}
