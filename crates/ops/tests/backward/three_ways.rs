//! Tolerances. Our gradients are sums in f32, of at most some thousand terms here: 1e-5 of the
//! largest value is some hundred units in the last place, and what two orders of summation differ by.
//! Winograd's convolutions and burn's own backward have errors of their own: 5e-5 in the large cases.

use aquatint_ops::Device;
use aquatint_testkit::{Tensors, golden};

use super::cases::{Path, large, small};
use super::exact;
use super::support::{close, operands, random, run};

fn devices() -> [(&'static str, Device); 2] {
    let plain = Device::flex().autodiff();
    let recomputing = Device::flex().autodiff().gradient_checkpointing();
    [("kept", plain), ("recomputed", recomputing)]
}

#[test]
fn small_cases_equal_finite_differences_in_f64() {
    for case in small() {
        let operands: Vec<Vec<f64>> = operands(&case)
            .iter()
            .map(|t| t.iter().map(|v| f64::from(*v)).collect())
            .collect();
        let y = (case.exact)(&operands);
        let dy = random(y.len(), 100);
        for (mode, device) in devices() {
            let found = run(&case, &device, Path::Fused, &vec![true; operands.len()]);
            let y: Vec<f32> = y.iter().map(|v| *v as f32).collect();
            close(&format!("{} {mode} y", case.name), &found.y, &y, 1e-5);
            for (i, found) in found.gradients.iter().enumerate() {
                let want = exact::gradient(&*case.exact, &operands, i, &dy);
                let what = format!("{} {mode} operand {i}", case.name);
                close(&what, found.as_deref().expect("wanted"), &want, 1e-5);
            }
        }
    }
}

#[test]
fn small_cases_equal_pytorch() {
    let tensors = Tensors::read(golden("ops_backward.safetensors")).expect("the golden");
    for case in small() {
        let want = tensors.get(case.name).f32();
        for (mode, device) in devices() {
            let found = run(&case, &device, Path::Fused, &vec![true; case.shapes.len()]);
            let mut at = 0;
            let gradients = found.gradients.iter().flatten();
            for (i, found) in [&found.y].into_iter().chain(gradients).enumerate() {
                let what = format!("{} {mode} part {i}", case.name);
                close(&what, found, &want[at..at + found.len()], 1e-5);
                at += found.len();
            }
            assert_eq!(at, want.len(), "{}", case.name);
        }
    }
}

#[test]
fn large_cases_equal_burns_autodiff_through_the_reference() {
    for case in large() {
        let all = vec![true; case.shapes.len()];
        let want = run(&case, &Device::flex().autodiff(), Path::Reference, &all);
        for (mode, device) in devices() {
            let found = run(&case, &device, Path::Fused, &all);
            close(&format!("{} {mode} y", case.name), &found.y, &want.y, 5e-5);
            for (i, (found, want)) in found.gradients.iter().zip(&want.gradients).enumerate() {
                let (found, want) = (found.as_deref(), want.as_deref());
                let what = format!("{} {mode} operand {i}", case.name);
                close(&what, found.expect("wanted"), want.expect("wanted"), 5e-5);
            }
        }
    }
}

#[test]
fn an_operand_that_wants_none_gets_none_and_changes_no_other() {
    for (case, (mode, device)) in small().iter().flat_map(|c| devices().map(|d| (c, d))) {
        let what = format!("{} {mode}", case.name);
        let all = run(case, &device, Path::Fused, &vec![true; case.shapes.len()]);
        for only in 0..case.shapes.len() {
            let wanted: Vec<bool> = (0..case.shapes.len()).map(|i| i == only).collect();
            let found = run(case, &device, Path::Fused, &wanted);
            for (i, gradient) in found.gradients.iter().enumerate() {
                assert_eq!(gradient.is_some(), i == only, "{what}");
            }
            assert_eq!(found.gradients[only], all.gradients[only], "{what}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_threads() {
    let device = Device::flex().autodiff();
    let with = |threads: usize, case: &super::cases::Case| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let all = vec![true; case.shapes.len()];
        let run = || run(case, &device, Path::Fused, &all).gradients;
        pool.expect("a pool of threads").install(run)
    };
    for case in large() {
        let one = with(1, &case);
        for threads in [1, 2, 3] {
            assert!(one == with(threads, &case), "{} on {threads}", case.name);
        }
    }
}
