use aquatint_kernels::{
    Activation, BlockFormat, Epilogue, Gemm, Isa, KernelError, MatMut, MatRef, Rhs, RhsData,
    RhsLayout, gemm, reference,
};
use proptest::prelude::*;

use crate::{ACTIVATIONS, ROUNDOFF, STORED, Stored, assert_close, noise, size};

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    size: (usize, usize, usize),
    gaps: (usize, usize, usize),
    layout: RhsLayout,
    stored: usize,
    activation: Activation,
    bias: bool,
    residual: bool,
    shared: bool,
    /// A lies as `[k, m]`.
    transposed: bool,
    /// Values and gates.
    gated: bool,
    /// Rows that share a bias; 0: all.
    rows_per_bias: usize,
}

impl Case {
    fn strides(&self) -> (usize, usize, usize) {
        let (m, n, k) = self.size;
        let rows = match self.layout {
            RhsLayout::RowsAreOutputs => k,
            RhsLayout::RowsAreInner => self.outputs(),
        };
        let a = if self.transposed { m } else { k };
        (a + self.gaps.0, rows + self.gaps.1, n + self.gaps.2)
    }

    /// Outputs of the right-hand side.
    fn outputs(&self) -> usize {
        self.size.1 * (1 + usize::from(self.gated))
    }

    /// Biases, each for a group of rows.
    fn biases(&self) -> usize {
        (self.batch * self.size.0)
            .checked_next_multiple_of(self.rows_per_bias)
            .map_or(1, |rows| rows / self.rows_per_bias)
    }

    fn a_rows(&self) -> usize {
        if self.transposed {
            self.size.2
        } else {
            self.size.0
        }
    }

    fn b_rows(&self) -> usize {
        match self.layout {
            RhsLayout::RowsAreOutputs => self.outputs(),
            RhsLayout::RowsAreInner => self.size.2,
        }
    }

    /// Inputs a, b, bias, residual.
    fn inputs(&self) -> [Vec<f32>; 4] {
        let (m, (sa, sb, sc)) = (self.size.0, self.strides());
        let matrices = if self.shared { 1 } else { self.batch };
        [
            noise(self.batch * self.a_rows() * sa, 1),
            noise(matrices * self.b_rows() * sb, 2),
            noise(self.biases() * self.outputs(), 3),
            noise(self.batch * m * sc, 4),
        ]
    }

    fn call<'a>(
        &self,
        a: &'a [f32],
        b: &'a Stored,
        bias: &'a [f32],
        residual: &'a [f32],
        c: &'a mut [f32],
    ) -> Gemm<'a> {
        let ((m, n, k), (sa, sb, sc)) = (self.size, self.strides());
        let rows = MatRef {
            data: residual,
            row_stride: sc,
            batch_stride: m * sc,
            transposed: false,
        };
        Gemm {
            batch: self.batch,
            m,
            n,
            k,
            a: MatRef {
                data: a,
                row_stride: sa,
                batch_stride: self.a_rows() * sa,
                transposed: self.transposed,
            },
            b: Rhs {
                data: b.data(),
                layout: self.layout,
                row_stride: sb,
                batch_stride: if self.shared { 0 } else { self.b_rows() * sb },
            },
            c: MatMut {
                data: c,
                row_stride: sc,
                batch_stride: m * sc,
            },
            epilogue: Epilogue {
                bias: self.bias.then_some(bias),
                rows_per_bias: self.rows_per_bias,
                gated: self.gated,
                activation: self.activation,
                residual: self.residual.then_some(rows),
            },
        }
    }

    fn check(&self) {
        let [a, b, bias, residual] = self.inputs();
        let abs = |v: &[f32]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
        // Elements between rows must stay as they are.
        let fresh = vec![777.0f32; self.batch * self.size.0 * self.strides().2];
        let (mut want, mut magnitude) = (fresh.clone(), fresh.clone());
        let stored = Stored::new(b.clone(), self.stored);
        reference::gemm(self.call(&a, &stored, &bias, &residual, &mut want)).unwrap();
        let plain = Case {
            activation: Activation::None,
            ..self.clone()
        };
        let sizes = [abs(&a), abs(&bias), abs(&residual)];
        let stored_sizes = stored.magnitudes();
        let magnitudes = plain.call(
            &sizes[0],
            &stored_sizes,
            &sizes[1],
            &sizes[2],
            &mut magnitude,
        );
        reference::gemm(magnitudes).unwrap();
        // Rounding errors add up like a random walk over k; activations have slopes up to 1.13 and their own 4e-7. A
        // value and its gate are both off.
        let activation = if self.activation == Activation::None {
            0.0
        } else {
            4e-7
        };
        let one = (8.0 + (self.size.2 as f64).sqrt()) * ROUNDOFF * 1.2 + activation;
        let bound = one * if self.gated { 2.5 } else { 1.0 };
        for isa in Isa::available() {
            let mut got = fresh.clone();
            self.call(&a, &stored, &bias, &residual, &mut got)
                .run(isa)
                .unwrap();
            assert_close(
                &format!("{} {self:?}", isa.name()),
                &got,
                &want,
                &magnitude,
                bound,
            );
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let layout = prop_oneof![
        Just(RhsLayout::RowsAreOutputs),
        Just(RhsLayout::RowsAreInner)
    ];
    let options = (
        0usize..STORED,
        prop::sample::select(&ACTIVATIONS[..]),
        any::<[bool; 5]>(),
        prop::sample::select(vec![0usize, 0, 1, 3, usize::MAX]),
    );
    (
        0usize..4,
        (size(), size(), size()),
        (0usize..5, 0usize..5, 0usize..5),
        layout,
        options,
    )
        .prop_map(
            |(
                batch,
                size,
                gaps,
                layout,
                (stored, activation, [bias, residual, shared, transposed, gated], per_bias),
            )| Case {
                batch,
                size,
                gaps,
                layout,
                stored,
                activation,
                bias,
                residual,
                shared,
                transposed,
                gated,
                rows_per_bias: match per_bias {
                    // One for each matrix of the batch.
                    usize::MAX => size.0,
                    rows if size.0.is_multiple_of(rows.max(1)) => rows,
                    _ => 0,
                },
            },
        )
}

proptest! {
    #![proptest_config(crate::cases(500))]
    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn any_shape_agrees_with_the_reference(case in case()) {
        case.check();
    }
}

/// Every path at its smallest, which Miri can follow: few rows and tiles, layouts, storages, epilogues, threads.
#[test]
fn small_shapes_agree_with_the_reference() {
    let case = Case {
        batch: 2,
        size: (9, 10, 17),
        gaps: (1, 2, 3),
        layout: RhsLayout::RowsAreOutputs,
        stored: 0,
        activation: Activation::None,
        bias: true,
        residual: true,
        shared: false,
        transposed: false,
        gated: false,
        rows_per_bias: 3,
    };
    for stored in 0..STORED {
        for (rows, layout) in [
            (3, RhsLayout::RowsAreOutputs),
            (9, RhsLayout::RowsAreOutputs),
            (9, RhsLayout::RowsAreInner),
        ] {
            Case {
                batch: 1,
                size: (rows, 6, 35),
                layout,
                stored,
                ..case.clone()
            }
            .check();
        }
    }
    for (rows, gated, transposed) in [(3, true, false), (9, true, false), (9, false, true)] {
        Case {
            size: (rows, 10, 17),
            gated,
            transposed,
            activation: Activation::Gelu,
            ..case.clone()
        }
        .check();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let shared = Case {
        batch: 1,
        size: (24, 40, 140),
        rows_per_bias: 0,
        ..case
    };
    pool.unwrap().install(|| shared.check());
}

/// Large enough for several blocks of the inner dimension, and for tasks on several threads.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn blocked_shapes_agree_with_the_reference() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    for (size, layout, stored) in [
        ((61, 70, 1231), RhsLayout::RowsAreOutputs, 0),
        // Rows of A, with their gap, in one set of the cache.
        ((61, 70, 2045), RhsLayout::RowsAreOutputs, 0),
        ((130, 257, 600), RhsLayout::RowsAreInner, 1),
        ((29, 330, 580), RhsLayout::RowsAreOutputs, 2),
        ((5, 300, 1153), RhsLayout::RowsAreOutputs, 1),
        ((5, 130, 1280), RhsLayout::RowsAreOutputs, 4),
        ((33, 130, 1280), RhsLayout::RowsAreOutputs, 4),
        ((47, 96, 1152), RhsLayout::RowsAreOutputs, 5),
        ((47, 96, 1280), RhsLayout::RowsAreOutputs, 6),
        ((16, 96, 700), RhsLayout::RowsAreInner, 3),
    ] {
        let case = Case {
            batch: 2,
            size,
            gaps: (3, 1, 2),
            layout,
            stored,
            activation: Activation::Silu,
            bias: true,
            residual: true,
            shared: true,
            transposed: false,
            gated: false,
            rows_per_bias: 0,
        };
        let gated = Case {
            gated: true,
            activation: Activation::Gelu,
            rows_per_bias: size.0,
            ..case.clone()
        };
        pool.install(|| gated.check());
        let transposed = Case {
            transposed: true,
            ..case.clone()
        };
        pool.install(|| transposed.check());
        pool.install(|| case.check());
    }
}

/// The result does not depend on the number of threads.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn threads_do_not_change_the_result() {
    let (a, b) = (noise(150 * 700, 1), Stored::new(noise(90 * 700, 2), 0));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut c = vec![0.0; 150 * 90];
        pool.install(|| {
            gemm(Gemm {
                batch: 1,
                m: 150,
                n: 90,
                k: 700,
                a: MatRef::new(&a, 700),
                b: Rhs::weight(b.data(), 700),
                c: MatMut::new(&mut c, 150, 90),
                epilogue: Epilogue::default(),
            })
        })
        .unwrap();
        c
    };
    assert_eq!(run(1), run(4));
}

#[test]
fn short_slices_and_overlapping_rows_are_errors() {
    let (a, b) = (vec![0.0; 12], Stored::new(vec![0.0; 12], 0));
    let call = |a_len: usize, b_stride: usize, c_len: usize, c_stride: usize| {
        let mut c = vec![0.0; c_len];
        gemm(Gemm {
            batch: 1,
            m: 3,
            n: 3,
            k: 4,
            a: MatRef::new(&a[..a_len], 4),
            b: Rhs {
                row_stride: b_stride,
                ..Rhs::weight(b.data(), 4)
            },
            c: MatMut {
                data: &mut c,
                row_stride: c_stride,
                batch_stride: 0,
            },
            epilogue: Epilogue::default(),
        })
    };
    assert_eq!(call(12, 4, 9, 3), Ok(()));
    assert_eq!(
        call(11, 4, 9, 3),
        Err(KernelError::Length {
            what: "a",
            expected: 12,
            found: 11
        })
    );
    assert_eq!(
        call(12, 5, 9, 3),
        Err(KernelError::Length {
            what: "b",
            expected: 14,
            found: 12
        })
    );
    assert_eq!(
        call(12, 4, 8, 3),
        Err(KernelError::Length {
            what: "c",
            expected: 9,
            found: 8
        })
    );
    assert_eq!(
        call(12, 4, 9, 2),
        Err(KernelError::Stride {
            what: "c rows",
            expected: 3,
            found: 2
        })
    );
    assert!(call(12, usize::MAX, 9, 3).is_err());
}

#[test]
fn wrong_epilogues_and_parts_of_blocks_are_errors() {
    let a = vec![0.0; 2 * 6 * 32];
    let call = |bytes: usize, bias: usize, epilogue: Epilogue<'_>| {
        let (blocks, bias, mut c) = (vec![0u8; bytes], vec![0.0; bias], vec![0.0; 2 * 6 * 4]);
        gemm(Gemm {
            batch: 2,
            m: 6,
            n: 4,
            k: 32,
            a: MatRef::new(&a, 32).batched(6 * 32),
            b: Rhs::weight(RhsData::Blocks(BlockFormat::Q8_0, &blocks), 32),
            c: MatMut::new(&mut c, 6, 4),
            epilogue: Epilogue {
                bias: Some(&bias),
                ..epilogue
            },
        })
    };
    let plain = Epilogue::default();
    let gated = Epilogue {
        gated: true,
        ..plain
    };
    let per = |rows_per_bias| Epilogue {
        rows_per_bias,
        ..plain
    };
    assert_eq!(call(4 * 34, 4, plain), Ok(()));
    assert_eq!(call(8 * 34, 8, gated), Ok(()));
    assert_eq!(call(4 * 34, 4 * 4, per(3)), Ok(()));
    assert_eq!(call(4 * 34, 4, per(12)), Ok(()));
    for (what, result) in [
        ("blocks", call(4 * 34 - 1, 4, plain)),
        ("rows per bias", call(4 * 34, 3 * 4, per(4))),
    ] {
        assert!(
            matches!(result, Err(KernelError::Size { .. })),
            "{what}: {result:?}"
        );
    }
    for (what, result) in [
        ("a block too few", call(3 * 34, 4, plain)),
        ("half a gated weight", call(4 * 34, 8, gated)),
        ("half a gated bias", call(8 * 34, 4, gated)),
        ("a bias too few", call(4 * 34, 3 * 4, per(3))),
    ] {
        assert!(
            matches!(result, Err(KernelError::Length { .. })),
            "{what}: {result:?}"
        );
    }
    let residual = MatRef::transposed(&a, 6);
    let result = call(
        4 * 34,
        4,
        Epilogue {
            residual: Some(residual),
            ..plain
        },
    );
    assert!(
        matches!(result, Err(KernelError::Size { .. })),
        "{result:?}"
    );
}
