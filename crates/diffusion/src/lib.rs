//! The mathematics of diffusion: noise schedules, predictions, samplers, guidance, randomness.
