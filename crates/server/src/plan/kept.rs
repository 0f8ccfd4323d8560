//! How a plan is kept: JSON in the job's row.

use serde::{Serialize, de::DeserializeOwned};

/// What is kept of a job.
pub(crate) trait Kept: Serialize + DeserializeOwned {
    /// As it is stored.
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("our types have text keys only")
    }

    /// As it was stored.
    ///
    /// # Errors
    /// When it is not what this version, or the one before, stores for jobs of this kind.
    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}
