//! Runs requests for one job one after another, each to its end, whether or not its caller still waits: half a request
//! is worse than none or all of it, and an abandoned request must not run interleaved with its successor. Requests for
//! other jobs do not wait: a hanging file system blocks its own move only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry_core::id::JobId;
use tokio::sync::OwnedMutexGuard;
use tracing::Instrument as _;

use crate::{AgentError, lock::lock};

/// Longest wait for another request of the same job: no caller waits longer, and a request without a caller is not
/// begun.
const LOCK_WAIT: Duration = Duration::from_secs(90);

/// The jobs with a request in progress.
#[derive(Default)]
pub struct JobLocks(Mutex<HashMap<JobId, Arc<tokio::sync::Mutex<()>>>>);

impl JobLocks {
    /// Waits until no other request of the job is in progress.
    ///
    /// # Errors
    /// If another one does not end in time.
    pub(crate) async fn lock(&self, job: JobId) -> Result<OwnedMutexGuard<()>, AgentError> {
        self.lock_within(job, LOCK_WAIT).await
    }

    async fn lock_within(&self, job: JobId, wait: Duration) -> Result<OwnedMutexGuard<()>, AgentError> {
        let of_job = {
            let mut locks = lock(&self.0);
            locks.retain(|_, of_job| Arc::strong_count(of_job) > 1);
            Arc::clone(locks.entry(job).or_default())
        };
        tokio::time::timeout(wait, of_job.lock_owned()).await.map_err(|_| {
            AgentError::failed(format!(
                "Another request about job {job} does not end: a file system of its disks may not answer"
            ))
        })
    }

    /// Runs a request.
    ///
    /// # Errors
    /// Those of the request; if another request of the job does not end in time.
    pub(crate) async fn serialized<T: Send + 'static>(
        self: &Arc<Self>,
        job: JobId,
        request: impl Future<Output = Result<T, AgentError>> + Send + 'static,
    ) -> Result<T, AgentError> {
        let locks = Arc::clone(self);
        let request = async move {
            let _lock = locks.lock(job).await?;
            request.await
        };
        let done = tokio::spawn(request.in_current_span());
        done.await.unwrap_or_else(|error| {
            Err(AgentError::because(format!("A request about job {job} was broken off"), error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_waits_for_those_of_its_own_move_only() {
        let locks = Arc::new(JobLocks::default());
        let first = locks.lock(JobId(1)).await.expect("free");
        drop(locks.lock(JobId(2)).await.expect("another move"));
        assert!(locks.lock_within(JobId(1), Duration::ZERO).await.is_err(), "it is under way");
        let waiting = Arc::clone(&locks);
        let waits = tokio::spawn(async move { waiting.lock(JobId(1)).await.map(drop) });
        drop(first);
        waits.await.expect("no panic").expect("its turn");
    }

    #[tokio::test]
    async fn a_request_is_done_to_its_end_though_its_caller_left() {
        let locks = Arc::new(JobLocks::default());
        let first = locks.lock(JobId(1)).await.expect("free");
        let (done, is_done) = tokio::sync::oneshot::channel();
        let request = locks.serialized(JobId(1), async move { Ok(done.send(()).is_ok()) });
        assert!(tokio::time::timeout(Duration::ZERO, request).await.is_err(), "the caller leaves");
        drop(first);
        is_done.await.expect("it was done");
    }
}
