//! Any text as a prompt: never a panic, finite weights within the documented bound, pieces merged as
//! documented, and no text that the prompt does not hold.
//!
//! The parser's file is compiled in here, since it stands alone and the models crate would bring burn
//! and minutes of sanitized building.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/models/src/text/prompt.rs"]
mod prompt;

use prompt::{MAX_WEIGHT, Piece, Syntax, parse};

fuzz_target!(|text: &str| {
    let plain = parse(text, Syntax::Plain);
    assert!(matches!(&plain[..], [Piece::Text(w)] if w.text == text && w.weight == 1.0));

    let pieces = parse(text, Syntax::Automatic1111);
    assert!(!pieces.is_empty(), "at least one piece");
    let mut rest = text.chars();
    for pair in pieces.windows(2) {
        if let [Piece::Text(a), Piece::Text(b)] = pair {
            assert!(a.weight != b.weight, "neighbours of equal weight are one");
        }
    }
    for piece in &pieces {
        let Piece::Text(w) = piece else { continue };
        assert!(
            w.weight.is_finite() && w.weight.abs() <= MAX_WEIGHT,
            "{}",
            w.weight
        );
        // What is left of the prompt keeps its order: syntax only takes characters away.
        for c in w.text.chars() {
            assert!(
                rest.any(|p| p == c),
                "{c:?} is not in the prompt, or not there"
            );
        }
    }
    assert_eq!(pieces, parse(text, Syntax::Automatic1111));
});
