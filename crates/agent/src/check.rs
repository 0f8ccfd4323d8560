//! One thing that set-up looked at on a host.

use std::fmt;

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is as it should be.
    Good(String),
    /// It works, at a loss.
    Odd(String),
    /// Ferry does not work until it is mended.
    Missing(String),
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(text) => write!(f, "✓ {text}"),
            Self::Odd(text) => write!(f, "! {text}"),
            Self::Missing(text) => write!(f, "✗ {text}"),
        }
    }
}
