//! The command line of Ferry.
