//! The original tiny autoencoder: one `nn.Sequential` a side, each in a file of its own.

/// The original name of a diffusers name: `encoder.layers.1.conv.0.weight` is `1.conv.0.weight`.
/// The original decoder begins with a clamp that has no parameters, which diffusers leaves out of
/// its list, so its numbers are one higher.
pub(super) fn original(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("encoder.layers.") {
        return rest.to_owned();
    }
    let Some(rest) = name.strip_prefix("decoder.layers.") else {
        return name.to_owned();
    };
    match super::number(rest) {
        Some((i, rest)) => format!("{}.{rest}", i + 1),
        None => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoder_numbers_are_one_higher() {
        assert_eq!(original("decoder.layers.0.weight"), "1.weight");
        assert_eq!(original("decoder.layers.2.conv.4.bias"), "3.conv.4.bias");
        assert_eq!(original("encoder.layers.0.weight"), "0.weight");
    }
}
