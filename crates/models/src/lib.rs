//! The models of Aquatint: text encoders, UNet, autoencoders, and their detection.
