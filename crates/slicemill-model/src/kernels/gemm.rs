//! Matrix products with a packed right-hand side.
//!
//! ```text
//!   C[m, n] = A[m, k] · B[k, n]        B is kept as panels of 16 columns: panel[k][16]
//!
//!   one tile:  T = rows × panels vectors of 16 accumulators; for each k: broadcast A, load B, multiply-add
//! ```
//!
//! Weights are packed once when a model is loaded, so a product packs nothing. Row count and tile shape change only
//! which accumulators are in registers together, never the order in which one of them is summed.

use rayon::prelude::*;

use super::isa::{Isa, compiled_per_isa};
use super::math::{Activation, gelu, gelu_tanh, madd, quick_gelu};
use super::{LANES, round_up, threads};

/// Rows that one task computes: enough to use a panel several times while it is in the first-level cache.
const BLOCK_ROWS: usize = 48;
/// Below this many multiply-adds a product is not worth a second thread.
const PARALLEL_MIN: usize = 1 << 19;

/// A right-hand side `[k, n]` as panels of 16 columns, zero-padded.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    panels: Vec<f32>,
    k: usize,
    n: usize,
}

impl PackedMatrix {
    /// Packs the weight of a linear layer, `[n, k]` row-major (one row per output).
    pub fn from_output_rows(weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k, "a weight of {n} × {k} values");
        let mut panels = vec![0.0; round_up(n) * k];
        for (j, row) in weight.chunks_exact(k.max(1)).enumerate() {
            let panel = &mut panels[(j / LANES) * LANES * k..];
            for (i, &value) in row.iter().enumerate() {
                panel[i * LANES + j % LANES] = value;
            }
        }
        Self { panels, k, n }
    }

    /// Rows of the right-hand side: width of the input.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Columns of the right-hand side: width of the output.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Bytes held.
    pub const fn bytes(&self) -> usize {
        self.panels.len() * size_of::<f32>()
    }
}

/// What is done to the product before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to every row, `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last, `[m, n]`.
    pub residual: Option<&'a [f32]>,
}

/// `A · B` with an epilogue, `[m, n]`. `a` is `[m, k]`.
pub fn gemm(isa: Isa, a: &[f32], m: usize, b: &PackedMatrix, epilogue: Epilogue<'_>) -> Vec<f32> {
    let (k, n) = (b.k, b.n);
    assert_eq!(a.len(), m * k, "an input of {m} rows of {k}");
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == n), "a bias of {n}");
    assert!(epilogue.residual.is_none_or(|residual| residual.len() == m * n), "a residual of {m} × {n}");
    let mut c = vec![0.0; m * n];
    if m == 0 || n == 0 {
        return c;
    }
    let threads = threads();
    if threads == 1 || m * n * k < PARALLEL_MIN {
        linear(isa, m, k, a, &b.panels, n, epilogue, &mut c);
    } else if m >= 2 * BLOCK_ROWS {
        let block = (m.div_ceil(2 * threads)).div_ceil(12).saturating_mul(12).min(BLOCK_ROWS);
        c.par_chunks_mut(block * n).zip(a.par_chunks(block * k)).enumerate().for_each(|(i, (c, a))| {
            let rows = c.len() / n;
            let residual = epilogue.residual.map(|r| &r[i * block * n..][..rows * n]);
            linear(isa, rows, k, a, &b.panels, n, Epilogue { residual, ..epilogue }, c);
        });
    } else {
        by_columns(isa, a, m, b, epilogue, threads, &mut c);
    }
    c
}

/// Few rows: every task computes some columns of all of them.
fn by_columns(isa: Isa, a: &[f32], m: usize, b: &PackedMatrix, e: Epilogue<'_>, threads: usize, c: &mut [f32]) {
    let (k, n) = (b.k, b.n);
    let panels = n.div_ceil(LANES);
    let group = panels.div_ceil(2 * threads).max((PARALLEL_MIN / 2).div_ceil(m * k * LANES));
    let columns = |i: usize| (i * group * LANES)..((i + 1) * group * LANES).min(n);
    let parts: Vec<Vec<f32>> = b
        .panels
        .par_chunks(group * LANES * k)
        .enumerate()
        .map(|(i, panels)| {
            let columns = columns(i);
            let mut part = vec![0.0; m * columns.len()];
            let epilogue =
                Epilogue { bias: e.bias.map(|bias| &bias[columns.clone()]), activation: e.activation, residual: None };
            linear(isa, m, k, a, panels, columns.len(), epilogue, &mut part);
            part
        })
        .collect();
    for (i, part) in parts.iter().enumerate() {
        let columns = columns(i);
        for (c, part) in c.chunks_exact_mut(n).zip(part.chunks_exact(columns.len())) {
            c[columns.clone()].copy_from_slice(part);
        }
    }
    if let Some(residual) = e.residual {
        c.iter_mut().zip(residual).for_each(|(c, r)| *c += r);
    }
}

compiled_per_isa! {
    /// Serial product of contiguous rows with its epilogue.
    fn linear = linear_body(
        m: usize, k: usize, a: &[f32], panels: &[f32], n: usize, epilogue: Epilogue<'_>, c: &mut [f32],
    )
}

#[inline(always)]
fn linear_body<const FMA: bool, const WIDE: bool>(
    m: usize,
    k: usize,
    a: &[f32],
    panels: &[f32],
    n: usize,
    epilogue: Epilogue<'_>,
    c: &mut [f32],
) {
    for start in (0..m).step_by(BLOCK_ROWS) {
        let rows = BLOCK_ROWS.min(m - start);
        let c = &mut c[start * n..][..rows * n];
        product::<FMA, WIDE>(rows, k, &a[start * k..], k, panels, LANES * k, n, c, n);
        let residual = epilogue.residual.map(|r| &r[start * n..][..rows * n]);
        finish::<FMA>(c, n, Epilogue { residual, ..epilogue });
    }
}

/// Applies an epilogue to whole rows.
#[inline(always)]
fn finish<const FMA: bool>(c: &mut [f32], n: usize, epilogue: Epilogue<'_>) {
    if let Some(bias) = epilogue.bias {
        for row in c.chunks_exact_mut(n) {
            row.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
    }
    match epilogue.activation {
        Activation::None => {}
        Activation::QuickGelu => c.iter_mut().for_each(|x| *x = quick_gelu::<FMA>(*x)),
        Activation::GeluTanh => c.iter_mut().for_each(|x| *x = gelu_tanh::<FMA>(*x)),
        Activation::Gelu => c.iter_mut().for_each(|x| *x = gelu::<FMA>(*x)),
    }
    if let Some(residual) = epilogue.residual {
        c.iter_mut().zip(residual).for_each(|(c, r)| *c += r);
    }
}

/// `C[m, n] = A · B` with rows of A `lda` apart, rows of C `ldc` apart, and panels of B `stride` apart, of which the
/// first `k` rows are used.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
pub(super) fn product<const FMA: bool, const WIDE: bool>(
    m: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    panels: &[f32],
    stride: usize,
    n: usize,
    c: &mut [f32],
    ldc: usize,
) {
    let count = n.div_ceil(LANES);
    let mut panel = 0;
    if m == 1 {
        // One row alone would wait for its own chain of additions: four panels side by side hide that.
        while panel + 4 <= count {
            let width = (n - panel * LANES).min(4 * LANES);
            tile::<FMA, 4, 4>(k, a, lda, &panels[panel * stride..], stride, &mut c[panel * LANES..], ldc, width);
            panel += 4;
        }
    }
    while panel < count {
        let width = (n - panel * LANES).min(LANES);
        let (panels, mut row) = (&panels[panel * stride..], 0);
        while row < m {
            let (a, c) = (&a[row * lda..], &mut c[row * ldc + panel * LANES..]);
            row += match m - row {
                12.. if WIDE => tile::<FMA, 12, 1>(k, a, lda, panels, stride, c, ldc, width),
                8.. if WIDE => tile::<FMA, 8, 1>(k, a, lda, panels, stride, c, ldc, width),
                6.. if !WIDE => tile::<FMA, 6, 1>(k, a, lda, panels, stride, c, ldc, width),
                4.. => tile::<FMA, 4, 1>(k, a, lda, panels, stride, c, ldc, width),
                3 => tile::<FMA, 3, 1>(k, a, lda, panels, stride, c, ldc, width),
                2 => tile::<FMA, 2, 1>(k, a, lda, panels, stride, c, ldc, width),
                _ => tile::<FMA, 1, 1>(k, a, lda, panels, stride, c, ldc, width),
            };
        }
        panel += 1;
    }
}

/// A tile of `T / P` rows by `P` panels, of which `width` columns are stored. Returns its rows.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel takes its shapes and slices one by one")]
#[allow(clippy::needless_range_loop, reason = "indices over fixed sizes are what LLVM keeps in registers")]
fn tile<const FMA: bool, const T: usize, const P: usize>(
    k: usize,
    a: &[f32],
    lda: usize,
    panels: &[f32],
    stride: usize,
    c: &mut [f32],
    ldc: usize,
    width: usize,
) -> usize {
    let mut sums = [[0.0_f32; LANES]; T];
    let rows: [&[f32]; T] = std::array::from_fn(|t| &a[(t / P) * lda..][..k]);
    let columns: [&[[f32; LANES]]; T] =
        std::array::from_fn(|t| &panels[(t % P) * stride..][..k * LANES].as_chunks::<LANES>().0[..k]);
    for i in 0..k {
        for t in 0..T {
            let (x, b) = (rows[t][i], &columns[t][i]);
            for j in 0..LANES {
                sums[t][j] = madd::<FMA>(x, b[j], sums[t][j]);
            }
        }
    }
    for t in 0..T {
        let column = (t % P) * LANES;
        let stored = (width - column).min(LANES);
        c[(t / P) * ldc + column..][..stored].copy_from_slice(&sums[t][..stored]);
    }
    T / P
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn product_is_the_textbook_one() {
        for (m, n, k) in [(1, 1, 1), (1, 100, 7), (2, 17, 33), (5, 64, 160), (65, 48, 32), (200, 130, 70)] {
            let (a, w) = (noise(m * k, 1), noise(n * k, 2));
            let (bias, residual) = (noise(n, 3), noise(m * n, 4));
            let packed = PackedMatrix::from_output_rows(&w, n, k);
            for isa in Isa::available() {
                let e = Epilogue { bias: Some(&bias), activation: Activation::QuickGelu, residual: Some(&residual) };
                let c = gemm(isa, &a, m, &packed, e);
                for i in 0..m {
                    for j in 0..n {
                        let sum: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(w[j * k + x])).sum();
                        let x = sum + f64::from(bias[j]);
                        let want = x / (1.0 + (-1.702 * x).exp()) + f64::from(residual[i * n + j]);
                        assert!((f64::from(c[i * n + j]) - want).abs() < 2e-5, "{m} {n} {k} {isa:?} at {i},{j}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        let (n, k) = (100, 75);
        let packed = PackedMatrix::from_output_rows(&noise(n * k, 2), n, k);
        let bias = noise(n, 5);
        let e = Epilogue { bias: Some(&bias), activation: Activation::GeluTanh, residual: None };
        for isa in Isa::available() {
            let a = noise(150 * k, 1);
            let all = gemm(isa, &a, 150, &packed, e);
            for rows in [1, 2, 3, 4, 5, 7, 11, 13, 25, 150] {
                for start in [0, 150 - rows] {
                    let part = gemm(isa, &a[start * k..][..rows * k], rows, &packed, e);
                    assert_eq!(bits(&part), bits(&all[start * n..][..rows * n]), "{rows} rows from {start}");
                }
            }
        }
    }

    #[test]
    fn threads_and_vector_width_do_not_change_a_bit() {
        let pools = [1, 2, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("pool"));
        for (m, n, k) in [(16, 1000, 160), (500, 130, 70), (3, 3000, 100)] {
            let (a, packed) = (noise(m * k, 1), PackedMatrix::from_output_rows(&noise(n * k, 2), n, k));
            let residual = noise(m * n, 9);
            let e = Epilogue { residual: Some(&residual), activation: Activation::QuickGelu, bias: None };
            let fused: Vec<Isa> = Isa::available().into_iter().filter(|isa| isa.fused()).collect();
            let mut seen: Option<Vec<u32>> = None;
            for isa in fused {
                for pool in &pools {
                    let c = bits(&pool.install(|| gemm(isa, &a, m, &packed, e)));
                    assert_eq!(*seen.get_or_insert_with(|| c.clone()), c, "{isa:?}");
                }
            }
        }
    }
}
