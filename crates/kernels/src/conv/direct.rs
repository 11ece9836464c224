//! First version: output rows in parallel, weights turned to `[kh, kw, in, out]` once.

use super::Conv2d;
use crate::elementwise::activate_slice;
use crate::threads::for_row_groups;

pub(super) fn run(mut conv: Conv2d<'_>) {
    let out = std::mem::take(&mut conv.out);
    let conv = &conv;
    let (oh, ow) = conv.out_size();
    let (h, w) = conv.seen_size();
    let (kh, kw) = conv.kernel;
    let (cin, cout) = (conv.in_channels, conv.out_channels);
    let shift = usize::from(conv.upsample);
    let mut weight = vec![0.0f32; kh * kw * cin * cout];
    for o in 0..cout {
        for c in 0..cin {
            for tap in 0..kh * kw {
                weight[(tap * cin + c) * cout + o] = conv.weight.get((o * cin + c) * kh * kw + tap);
            }
        }
    }
    for_row_groups(out, ow * cout, ow * cout * cin * kh * kw, |first, rows| {
        for (row_index, row) in rows.chunks_exact_mut(ow * cout).enumerate() {
            let (b, oy) = ((first + row_index) / oh, (first + row_index) % oh);
            for (ox, pixel) in row.chunks_exact_mut(cout).enumerate() {
                match conv.bias_of(b) {
                    Some(bias) => pixel.copy_from_slice(bias),
                    None => pixel.fill(0.0),
                }
                for tap in 0..kh * kw {
                    let y = (oy * conv.stride + tap / kw).wrapping_sub(conv.padding.top);
                    let x = (ox * conv.stride + tap % kw).wrapping_sub(conv.padding.left);
                    if y >= h || x >= w {
                        continue;
                    }
                    let at = ((b * conv.height + (y >> shift)) * conv.width + (x >> shift)) * cin;
                    for (c, &v) in conv.x[at..][..cin].iter().enumerate() {
                        for (o, &k) in pixel.iter_mut().zip(&weight[(tap * cin + c) * cout..]) {
                            *o += v * k;
                        }
                    }
                }
                activate_slice(pixel, conv.activation);
                if let Some(residual) = conv.residual {
                    let at = ((first + row_index) * ow + ox) * cout;
                    pixel
                        .iter_mut()
                        .zip(&residual[at..])
                        .for_each(|(o, r)| *o += r);
                }
            }
        }
    });
}
