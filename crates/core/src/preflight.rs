//! Facts → findings.
