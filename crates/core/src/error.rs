//! Errors for people: one line with every cause.

use std::error::Error;

/// An error and its causes, outermost first, joined by `: `. A cause that the text already contains is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    enum Layer {
        #[error("Could not read {0}")]
        Read(&'static str, #[source] io::Error),
        #[error("{0}")]
        Repeats(#[source] io::Error),
        #[error("Could not begin")]
        Begin(#[source] Box<Layer>),
    }

    #[test]
    fn each_cause_is_said_once() {
        let broken = || io::Error::other("the disk is gone");
        for (error, expected) in [
            (Layer::Read("x", broken()), "Could not read x: the disk is gone"),
            (Layer::Repeats(broken()), "the disk is gone"),
            (Layer::Begin(Box::new(Layer::Read("x", broken()))), "Could not begin: Could not read x: the disk is gone"),
        ] {
            assert_eq!(chain(&error), expected);
        }
    }
}
