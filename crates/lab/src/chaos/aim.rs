//! The target of a fault.

/// The target of a fault: the ends of the move that it is aimed at.
#[derive(Clone, Debug)]
pub struct Aim {
    /// The guest.
    pub guest: String,
    /// The job, if it was accepted.
    pub job: Option<u64>,
    /// The source's index among the hosts.
    pub source: usize,
    /// The destination's index.
    pub destination: usize,
}
