//! Named points at which a test can make this host's part of a step fail.

use crate::AgentError;

/// Fails if a test requests it, before or after an effect.
pub(crate) fn made_to_fail(point: &str) -> Result<(), AgentError> {
    fail::fail_point!(point, |_| Err(AgentError::failed(format!("A test made it fail at {point}"))));
    // Without failpoints nothing fails.
    let _ = point;
    Ok(())
}
