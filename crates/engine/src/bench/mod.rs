//! Measuring: single operations beside the machine's peak, and the stages of a model.

mod model;
mod ops;
mod shape;

pub use model::{ModelTimes, Part, time_model};
pub use ops::{OpTime, peak_gflops, time};
pub use shape::{Op, SHAPES, Shape};

/// Median of some seconds; 0 of none.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    match times.len() {
        0 => 0.0,
        n if n % 2 == 1 => times[n / 2],
        n => (times[n / 2 - 1] + times[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(super::median(vec![]), 0.0);
    }
}
