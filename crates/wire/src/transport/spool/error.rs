//! Errors of a spool. Each names its share.

use std::{io, sync::Arc, time::Duration};

use thiserror::Error;

use super::segment::SegmentError;

/// Why a spool cannot go on.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The share did not answer for as long as is waited for it.
    #[error("The share {share} did not answer for {} s: could not {what}", after.as_secs())]
    Unreachable {
        /// The share.
        share: String,
        /// What was attempted.
        what: &'static str,
        /// For how long.
        after: Duration,
        /// The last failure.
        #[source]
        source: io::Error,
    },
    /// The share answered, and refused.
    #[error("Could not {what} on the share {share}")]
    Refused {
        /// The share.
        share: String,
        /// What was attempted.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A file is not what the other agent wrote.
    #[error("The file {name} on the share {share} was changed by somebody else")]
    Changed {
        /// The share.
        share: String,
        /// The file.
        name: String,
        /// In what.
        #[source]
        source: SegmentError,
    },
    /// A file is gone that nobody has read.
    #[error("The file {name} on the share {share} was removed by somebody else")]
    Missing {
        /// The share.
        share: String,
        /// The file.
        name: String,
    },
    /// The other end gave its pipe up.
    #[error("The other agent gave up its part on the share {share}")]
    Reset {
        /// The share.
        share: String,
    },
}

/// An error that all who use the spool get.
pub(super) type Fault = Arc<SpoolError>;

/// As an error of a pipe.
pub(super) fn io_error(fault: Fault) -> io::Error {
    let kind = match &*fault {
        SpoolError::Unreachable { .. } => io::ErrorKind::TimedOut,
        SpoolError::Refused { source, .. } => source.kind(),
        SpoolError::Changed { .. } => io::ErrorKind::InvalidData,
        SpoolError::Missing { .. } | SpoolError::Reset { .. } => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, fault)
}
