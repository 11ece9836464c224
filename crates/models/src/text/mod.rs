//! Text: prompts, tokens, text encoders.
