//! The stored form of a plan: JSON in the job's row.

use serde::{Serialize, de::DeserializeOwned};

/// A plan that is stored with its job.
pub(crate) trait Kept: Serialize + DeserializeOwned {
    /// The stored form.
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("our types have text keys only")
    }

    /// Parses the stored form.
    ///
    /// # Errors
    /// If the text is not what this version, or the one before, stores for jobs of this kind.
    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}
