//! One check of the host by `ferry-agent setup`.

use std::fmt;

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// As it should be.
    Good(String),
    /// It works, with a drawback.
    Odd(String),
    /// Ferry does not work until this is fixed.
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
