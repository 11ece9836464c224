//! The table of samplers. Command line help, API schemas, lists and the conformance suite derive from it.

use super::checks::{
    anything, check_ddpm, check_distilled, check_dpm, check_exploding, check_thresholding,
};
use super::table::{Defaults, Frame, Grid, OnFlows, SamplerInfo};
use super::{
    cfg_pp, clip_range, ddim, ddpm, deis, dpm_adaptive, dpm2, dpmpp_3m_sde, dpmpp_multistep,
    dpmpp_sde, dpmpp_singlestep, er_sde, euler, heun, ipndm, lcm, lms, pndm, res_multistep, unipc,
};
use crate::beta::BetaSchedule;
use crate::config::VarianceType;
use crate::plan::Plan;
use crate::spacing::{Exploding, Multistep};

const fn linear(start: f64, end: f64, zero_snr: bool, alpha_to_one: bool) -> Defaults {
    Defaults {
        beta: (BetaSchedule::Linear, start, end),
        zero_snr,
        alpha_to_one,
    }
}

/// DDPM, DDIM, Euler, Euler ancestral, DPM-Solver multistep, UniPC.
const PLAIN: Defaults = linear(1e-4, 0.02, true, true);
/// LMS, DPM-Solver singlestep, DEIS.
const PLAIN_OLD: Defaults = linear(1e-4, 0.02, false, true);
const PNDM: Defaults = linear(1e-4, 0.02, false, false);
/// Heun, KDPM2, DPM-Solver SDE.
const K_DIFFUSION: Defaults = linear(0.00085, 0.012, false, true);
/// LCM, TCD.
const DISTILLED: Defaults = Defaults {
    beta: (BetaSchedule::ScaledLinear, 0.00085, 0.012),
    zero_snr: true,
    alpha_to_one: true,
};

/// What most rows have in common.
const BASE: SamplerInfo = SamplerInfo {
    name: "",
    aliases: &[],
    summary: "",
    order: 1,
    stochastic: false,
    needs_uncond: false,
    default_eta: None,
    frame: Frame::Exploding,
    flows: OnFlows::Straight,
    reference: "",
    class: None,
    grid: Grid::Exploding(Exploding::Euler),
    defaults: PLAIN,
    calls: one_a_moving_step,
    check: check_exploding,
    new: |_, _, _| Box::new(euler::Euler),
};

/// Every sampler.
pub static SAMPLERS: &[SamplerInfo] = &[
    SamplerInfo {
        name: "euler",
        aliases: &["k_euler"],
        summary: "Euler's method on the probability-flow ODE: simple and even",
        reference: "diffusers EulerDiscreteScheduler; Karras et al. 2022, algorithm 2 without churn",
        class: Some("EulerDiscreteScheduler"),
        new: |_, _, _| Box::new(euler::Euler),
        ..BASE
    },
    SamplerInfo {
        name: "euler_a",
        aliases: &["euler_ancestral", "k_euler_a"],
        summary: "Euler's method with fresh noise in each step: varied, does not settle",
        stochastic: true,
        default_eta: Some(1.0),
        reference: "diffusers EulerAncestralDiscreteScheduler",
        class: Some("EulerAncestralDiscreteScheduler"),
        grid: Grid::Exploding(Exploding::EulerAncestral),
        new: |_, eta, options| {
            Box::new(euler::EulerAncestral {
                eta,
                s_noise: options.s_noise,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "heun",
        aliases: &["k_heun"],
        summary: "Heun's method: second order, two network calls a step",
        order: 2,
        reference: "diffusers HeunDiscreteScheduler; Karras et al. 2022, algorithm 2 without churn",
        class: Some("HeunDiscreteScheduler"),
        grid: Grid::Exploding(Exploding::Heun),
        defaults: K_DIFFUSION,
        calls: two_a_step,
        new: |plan, _, _| {
            Box::new(heun::Heun {
                clip: clip_range(plan, false),
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "dpm2",
        aliases: &["dpm_2", "kdpm2", "k_dpm_2"],
        summary: "DPM-Solver-2: a midpoint rule, two network calls a step",
        order: 2,
        reference: "diffusers KDPM2DiscreteScheduler; Lu et al. 2022",
        class: Some("KDPM2DiscreteScheduler"),
        grid: Grid::Exploding(Exploding::Kdpm2),
        defaults: K_DIFFUSION,
        calls: two_a_step,
        new: |_, _, options| {
            Box::new(dpm2::Dpm2 {
                eta: 0.0,
                s_noise: options.s_noise,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "dpm2_a",
        aliases: &["dpm2_ancestral", "dpm_2_ancestral", "kdpm2_a", "k_dpm_2_a"],
        summary: "DPM-Solver-2 with fresh noise in each step",
        order: 2,
        stochastic: true,
        default_eta: Some(1.0),
        reference: "diffusers KDPM2AncestralDiscreteScheduler",
        class: Some("KDPM2AncestralDiscreteScheduler"),
        grid: Grid::Exploding(Exploding::Kdpm2),
        defaults: K_DIFFUSION,
        calls: two_a_step,
        new: |_, eta, options| {
            Box::new(dpm2::Dpm2 {
                eta,
                s_noise: options.s_noise,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "lms",
        aliases: &["k_lms"],
        summary: "Linear multistep of fourth order: one network call a step",
        order: 4,
        reference: "diffusers LMSDiscreteScheduler",
        class: Some("LMSDiscreteScheduler"),
        grid: Grid::Exploding(Exploding::Heun),
        defaults: PLAIN_OLD,
        new: |_, _, _| Box::new(lms::Lms::default()),
        ..BASE
    },
    SamplerInfo {
        name: "ddpm",
        summary: "The original stochastic sampler: good with many steps",
        stochastic: true,
        frame: Frame::Preserving,
        flows: OnFlows::Unfit("its variances are those of a discrete chain of training steps"),
        reference: "diffusers DDPMScheduler; Ho et al. 2020",
        class: Some("DDPMScheduler"),
        grid: Grid::Ddpm,
        check: check_ddpm,
        calls: one_a_step,
        new: |plan, _, _| {
            let variance = plan
                .config
                .variance_type
                .unwrap_or(VarianceType::FixedSmall);
            Box::new(ddpm::Ddpm {
                clip: clip_range(plan, true),
                variance,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "ddim",
        summary: "Denoising diffusion implicit models; eta above 0 adds noise",
        default_eta: Some(0.0),
        frame: Frame::Preserving,
        reference: "diffusers DDIMScheduler; Song et al. 2021",
        class: Some("DDIMScheduler"),
        grid: Grid::Ddim,
        check: check_thresholding,
        calls: one_a_step,
        new: |plan, eta, _| {
            Box::new(ddim::Ddim {
                eta,
                clip: clip_range(plan, true),
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "pndm",
        aliases: &["plms"],
        summary: "Pseudo linear multistep, the sampler that Stable Diffusion 1 shipped with",
        // The warm-up's single step of lower order keeps a run of n steps at second.
        order: 2,
        frame: Frame::Preserving,
        flows: OnFlows::Unfit(
            "it counts in whole training steps of a discrete chain; ipndm is its successor",
        ),
        reference: "diffusers PNDMScheduler; Liu et al. 2022",
        class: Some("PNDMScheduler"),
        grid: Grid::Pndm,
        defaults: PNDM,
        calls: pndm::Pndm::calls,
        check: anything,
        new: |_, _, _| Box::new(pndm::Pndm::default()),
        ..BASE
    },
    SamplerInfo {
        name: "dpmpp_2m",
        aliases: &["dpm++_2m", "dpmsolver++"],
        summary: "DPM-Solver++ multistep: sharp in 20 steps, one network call a step",
        order: 2,
        frame: Frame::Preserving,
        flows: OnFlows::LogSnr,
        reference: "diffusers DPMSolverMultistepScheduler, algorithm dpmsolver++; Lu et al. 2022",
        class: Some("DPMSolverMultistepScheduler"),
        grid: Grid::Multistep(Multistep::Dpm),
        check: check_dpm,
        new: |plan, _, _| Box::new(dpmpp_multistep::DpmppMultistep::new(plan, false)),
        ..BASE
    },
    SamplerInfo {
        name: "dpmpp_2m_sde",
        aliases: &["dpm++_2m_sde", "sde-dpmsolver++"],
        summary: "DPM-Solver++ multistep with fresh noise in each step",
        order: 2,
        stochastic: true,
        frame: Frame::Preserving,
        flows: OnFlows::LogSnr,
        reference: "diffusers DPMSolverMultistepScheduler, algorithm sde-dpmsolver++",
        class: Some("DPMSolverMultistepScheduler"),
        grid: Grid::Multistep(Multistep::Dpm),
        check: check_dpm,
        new: |plan, _, _| Box::new(dpmpp_multistep::DpmppMultistep::new(plan, true)),
        ..BASE
    },
    SamplerInfo {
        name: "dpmpp_3m_sde",
        aliases: &["dpm++_3m_sde"],
        summary: "DPM-Solver++ of third order with fresh noise in each step",
        order: 3,
        stochastic: true,
        default_eta: Some(1.0),
        flows: OnFlows::Exploding,
        reference: "k-diffusion sample_dpmpp_3m_sde, with independent noise for its Brownian tree",
        new: |_, eta, options| Box::new(dpmpp_3m_sde::Dpmpp3mSde::new(eta, options.s_noise)),
        ..BASE
    },
    SamplerInfo {
        name: "dpmpp_2s",
        aliases: &["dpm++_2s"],
        summary: "DPM-Solver++ singlestep: two steps share a start, one network call a step",
        order: 2,
        frame: Frame::Preserving,
        flows: OnFlows::LogSnr,
        reference: "diffusers DPMSolverSinglestepScheduler, algorithm dpmsolver++",
        class: Some("DPMSolverSinglestepScheduler"),
        grid: Grid::Multistep(Multistep::DpmSingle),
        defaults: PLAIN_OLD,
        check: check_dpm,
        calls: one_a_step,
        new: |plan, _, _| Box::new(dpmpp_singlestep::DpmppSinglestep::new(plan)),
        ..BASE
    },
    SamplerInfo {
        name: "dpmpp_2s_a",
        aliases: &["dpm++_2s_a", "dpmpp_2s_ancestral"],
        summary: "DPM-Solver++ in two stages with fresh noise in each step",
        order: 2,
        stochastic: true,
        default_eta: Some(1.0),
        reference: "k-diffusion sample_dpmpp_2s_ancestral",
        calls: two_a_step,
        new: |_, eta, options| {
            Box::new(dpmpp_sde::Dpmpp2sAncestral {
                eta,
                s_noise: options.s_noise,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "dpmpp_sde",
        aliases: &["dpm++_sde"],
        summary: "DPM-Solver++ in two stages with fresh noise in both",
        order: 2,
        stochastic: true,
        default_eta: Some(1.0),
        flows: OnFlows::Exploding,
        reference: "diffusers DPMSolverSDEScheduler, with independent noise for its Brownian tree",
        class: Some("DPMSolverSDEScheduler"),
        grid: Grid::Exploding(Exploding::DpmSde),
        defaults: K_DIFFUSION,
        calls: two_a_step,
        new: |_, eta, options| {
            Box::new(dpmpp_sde::DpmppSde {
                eta,
                s_noise: options.s_noise,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "unipc",
        aliases: &["uni_pc"],
        summary: "Predictor and corrector for one network call a step: good from 10 steps",
        order: 2,
        frame: Frame::Preserving,
        flows: OnFlows::LogSnr,
        reference: "diffusers UniPCMultistepScheduler; Zhao et al. 2023",
        class: Some("UniPCMultistepScheduler"),
        grid: Grid::Multistep(Multistep::UniPc),
        check: check_dpm,
        new: |plan, _, _| Box::new(unipc::UniPc::new(plan)),
        ..BASE
    },
    SamplerInfo {
        name: "deis",
        // diffusers' own repeats its last noise level on flows, and leaves that noise in the picture.
        summary: "Exponential integrator with the noise extrapolated in ln(sigma); on flows it ends without noise, unlike diffusers'",
        order: 2,
        frame: Frame::Preserving,
        flows: OnFlows::LogSnr,
        reference: "diffusers DEISMultistepScheduler; Zhang and Chen 2023",
        class: Some("DEISMultistepScheduler"),
        grid: Grid::Multistep(Multistep::Deis),
        defaults: PLAIN_OLD,
        check: check_dpm,
        new: |plan, _, _| Box::new(deis::Deis::new(plan)),
        ..BASE
    },
    SamplerInfo {
        name: "ipndm",
        summary: "Multistep with the coefficients of even steps",
        // Its coefficients are those of even steps, and each further order fades with that.
        order: 2,
        reference: "ComfyUI sample_ipndm, the formula of diffusers IPNDMScheduler; Zhang and Chen 2022",
        new: |_, _, _| Box::new(ipndm::Ipndm::default()),
        ..BASE
    },
    SamplerInfo {
        name: "lcm",
        summary: "For latent consistency models: 2 to 8 steps",
        stochastic: true,
        frame: Frame::Preserving,
        reference: "diffusers LCMScheduler; Luo et al. 2023",
        class: Some("LCMScheduler"),
        grid: Grid::Lcm,
        defaults: DISTILLED,
        check: check_distilled,
        calls: one_a_step,
        new: |plan, _, _| {
            let scaling = plan.config.timestep_scaling.unwrap_or(10.0);
            Box::new(lcm::Lcm {
                clip: clip_range(plan, false),
                timestep_scaling: (plan.frame != Frame::Straight).then_some(scaling),
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "tcd",
        summary: "For trajectory consistency distillation: 2 to 8 steps, eta sets the noise",
        stochastic: true,
        default_eta: Some(0.3),
        frame: Frame::Preserving,
        flows: OnFlows::Unfit(
            "it follows the alphas of a discrete chain; lcm is for distilled flows",
        ),
        reference: "diffusers TCDScheduler; Zheng et al. 2024",
        class: Some("TCDScheduler"),
        grid: Grid::Tcd,
        defaults: DISTILLED,
        check: check_distilled,
        calls: one_a_step,
        new: |_, eta, _| Box::new(lcm::Tcd { eta }),
        ..BASE
    },
    SamplerInfo {
        name: "er_sde",
        summary: "Extended reverse-time SDE of third order: stochastic, yet good with few steps",
        order: 3,
        stochastic: true,
        flows: OnFlows::Exploding,
        reference: "ComfyUI sample_er_sde; Cui et al. 2023",
        new: |_, _, options| Box::new(er_sde::ErSde::new(options.s_noise)),
        ..BASE
    },
    SamplerInfo {
        name: "res_multistep",
        summary: "Refined exponential solver: second order, one network call a step",
        order: 2,
        default_eta: Some(0.0),
        reference: "ComfyUI sample_res_multistep; Zhang et al. 2023",
        new: |_, eta, options| Box::new(res_multistep::ResMultistep::new(eta, options.s_noise)),
        ..BASE
    },
    SamplerInfo {
        name: "euler_cfg_pp",
        summary: "Euler's method with CFG++: for guidance between 1 and 2",
        needs_uncond: true,
        reference: "ComfyUI sample_euler_cfg_pp; Chung et al. 2024",
        new: |_, _, _| {
            Box::new(cfg_pp::EulerCfgPp {
                eta: 0.0,
                s_noise: 0.0,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "euler_a_cfg_pp",
        aliases: &["euler_ancestral_cfg_pp"],
        summary: "Euler ancestral with CFG++: for guidance between 1 and 2",
        stochastic: true,
        needs_uncond: true,
        default_eta: Some(1.0),
        flows: OnFlows::Exploding,
        reference: "ComfyUI sample_euler_ancestral_cfg_pp; Chung et al. 2024",
        new: |_, eta, options| {
            Box::new(cfg_pp::EulerCfgPp {
                eta,
                s_noise: options.s_noise,
            })
        },
        ..BASE
    },
    SamplerInfo {
        name: "dpm_adaptive",
        summary: "DPM-Solver-23 that chooses its own steps; the step count is ignored",
        order: 3,
        reference: "k-diffusion sample_dpm_adaptive; Lu et al. 2022, algorithm 3",
        // Three a proposal, and some ten proposals.
        calls: |_| 30,
        new: |plan, _, _| Box::new(dpm_adaptive::DpmAdaptive::new(plan)),
        ..BASE
    },
];

fn one_a_step(plan: &Plan) -> usize {
    plan.len()
}

fn one_a_moving_step(plan: &Plan) -> usize {
    plan.steps.iter().filter(|step| !step.is_still()).count()
}

/// A step to no noise at all takes one call.
fn two_a_step(plan: &Plan) -> usize {
    2 * one_a_moving_step(plan) - usize::from(plan.ends_clean())
}
