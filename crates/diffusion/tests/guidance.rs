//! The denoiser of a run: what it asks of a network, and what guidance makes of the answers.

use aquatint_diffusion::{
    BoxError, Branches, Denoiser, Guidance, GuidedDenoiser, Level, Network, Outputs, Prediction,
};
use aquatint_testkit::{Tensors, golden, relative_error};

/// Gives the same outputs whatever its input, and records what it was asked.
struct Recorder {
    cond: Vec<f32>,
    uncond: Vec<f32>,
    asked: Vec<(Vec<f32>, f64, Branches)>,
}

impl Network for Recorder {
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError> {
        self.asked.push((input.to_vec(), timestep, branches));
        let uncond = (branches == Branches::CondAndUncond).then(|| self.uncond.clone());
        Ok(Outputs {
            cond: self.cond.clone(),
            uncond,
        })
    }
}

fn denoiser(guidance: Guidance, keep_uncond: bool) -> GuidedDenoiser<Recorder> {
    let network = Recorder {
        cond: vec![1.0, -0.5],
        uncond: vec![0.5, 0.5],
        asked: Vec::new(),
    };
    GuidedDenoiser {
        network,
        prediction: Prediction::Epsilon,
        guidance,
        images: 1,
        keep_uncond,
    }
}

#[test]
fn guidance_and_its_rescale_are_those_of_diffusers() {
    let tensors = Tensors::read(golden("samplers.safetensors")).unwrap();
    let get = |name: &str| tensors.get(name).f32();
    let (cond, uncond) = (get("guidance/cond"), get("guidance/uncond"));
    let guided = Guidance::new(7.5);
    assert_eq!(
        guided.apply(cond, uncond, 2),
        get("guidance/7.5"),
        "the same f32 operations"
    );
    for (rescale, name) in [(0.7, "guidance/7.5/0.7"), (1.0, "guidance/7.5/1.0")] {
        let found = Guidance { rescale, ..guided }.apply(cond, uncond, 2);
        // Deviations are summed in f64 here and in f32 there.
        assert!(relative_error(&found, get(name)) < 1e-6, "{rescale}");
    }
}

#[test]
fn the_network_is_asked_for_both_prompts_only_where_guidance_acts() {
    let level = Level::exploding(2.0, 300.0);
    let asked = |guidance, keep| {
        let mut denoiser = denoiser(guidance, keep);
        denoiser.denoise(&[1.0, 2.0], level).unwrap();
        denoiser.network.asked[0].2
    };
    assert_eq!(asked(Guidance::new(7.5), false), Branches::CondAndUncond);
    assert_eq!(asked(Guidance::new(1.0), false), Branches::Cond);
    assert_eq!(asked(Guidance::new(0.0), false), Branches::Cond);
    assert_eq!(asked(Guidance::new(1.0), true), Branches::CondAndUncond);
    let late = Guidance {
        interval: (0.1, 1.5),
        ..Guidance::new(7.5)
    };
    assert_eq!(asked(late, false), Branches::Cond);
}

#[test]
fn the_network_sees_unit_variance_and_its_guided_noise_is_taken_out() {
    let mut denoiser = denoiser(Guidance::new(3.0), true);
    let found = denoiser
        .denoise(&[3.0, 4.0], Level::exploding(2.0, 300.0))
        .unwrap();
    let (input, timestep, _) = &denoiser.network.asked[0];
    let norm = 5.0_f32.sqrt();
    assert!((input[0] - 3.0 / norm).abs() < 1e-6 && (input[1] - 4.0 / norm).abs() < 1e-6);
    assert_eq!(*timestep, 300.0);
    // uncond + 3 (cond - uncond) is (2, -2.5); x0 = x - 2 · noise.
    assert_eq!(found.denoised, [-1.0, 9.0]);
    assert_eq!(found.uncond_denoised.unwrap(), [2.0, 3.0]);
}

#[test]
fn an_output_of_the_wrong_length_is_an_error() {
    let mut denoiser = denoiser(Guidance::none(), false);
    let error = denoiser
        .denoise(&[1.0; 3], Level::exploding(2.0, 300.0))
        .unwrap_err()
        .to_string();
    assert!(error.contains("2 values; expected 3"), "{error}");
}
