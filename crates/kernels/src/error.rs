//! The one error type of the crate: a slice or a stride that does not fit the shape it came with.

/// A call whose slices and sizes do not fit each other. These are mistakes of the caller's code, never
/// of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice is shorter (or, where exact, longer) than its shape asks.
    #[error("{what} holds {found} elements, but its shape needs {expected}: pass the whole buffer")]
    Length {
        /// The argument's name.
        what: &'static str,
        /// Elements the shape needs.
        expected: usize,
        /// Elements the slice holds.
        found: usize,
    },
    /// A stride that lets rows of an output overlap.
    #[error("{what} has stride {found}, but rows span {expected}: pass a stride of at least that")]
    Stride {
        /// The argument's name.
        what: &'static str,
        /// The smallest stride allowed.
        expected: usize,
        /// The stride given.
        found: usize,
    },
    /// A size that the operation cannot work with.
    #[error("{what} is {found}, but must {expected}")]
    Size {
        /// The size's name.
        what: &'static str,
        /// What it must be, as the end of a sentence.
        expected: &'static str,
        /// The value given.
        found: usize,
    },
}

/// Product of sizes; saturates, so that an absurd shape asks for more than any slice holds.
pub(crate) fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1usize, |n, &s| n.saturating_mul(s))
}

/// Elements from the first to the last of `dims` = (size, stride) pairs, inclusive; 0 when empty.
pub(crate) fn extent(dims: &[(usize, usize)]) -> usize {
    if dims.iter().any(|d| d.0 == 0) {
        return 0;
    }
    dims.iter().fold(1usize, |n, d| {
        n.saturating_add((d.0 - 1).saturating_mul(d.1))
    })
}

pub(crate) fn exactly(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), KernelError> {
    if found == expected {
        Ok(())
    } else {
        Err(KernelError::Length {
            what,
            expected,
            found,
        })
    }
}

pub(crate) fn at_least(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), KernelError> {
    if found >= expected {
        Ok(())
    } else {
        Err(KernelError::Length {
            what,
            expected,
            found,
        })
    }
}
