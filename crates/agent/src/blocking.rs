//! Blocking work: calls to libvirt and to file systems.
//!
//! Each call runs on its own thread and is never interrupted: half of a change is worse than all of it. A caller may
//! stop waiting; the thread ends when the call does. While a file server is away, calls to it block, so read-only
//! callers go through [`Probes`], which bounds the number of such threads.

use std::{sync::Arc, time::Duration};

use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};
use tokio::{sync::Semaphore, task::JoinHandle};
use tracing::Span;

use crate::AgentError;

/// Time limit for a probe.
const PROBE_WITHIN: Duration = Duration::from_secs(10);
/// Limit of simultaneous probes, including hanging ones: each is a thread.
const PROBES_MAX: usize = 8;

/// Runs `call` to its end.
///
/// # Errors
/// Those of `call`.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    on_thread(call).await.unwrap_or_else(|error| Err(AgentError::because("A request was broken off", error)))
}

/// Calls the hypervisor.
///
/// # Errors
/// The hypervisor's.
pub(crate) async fn call<T: Send + 'static>(
    hypervisor: &Arc<dyn Hypervisor>,
    call: impl FnOnce(&dyn Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
) -> Result<T, HypervisorError> {
    let hypervisor = Arc::clone(hypervisor);
    match on_thread(move || call(&*hypervisor)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(HypervisorError::Unreachable(error.to_string())),
    }
}

/// Runs `call` on a thread, which logs in the span of its caller.
pub(crate) fn on_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(call))
}

/// Waits at most `deadline` for an answer. Work on a separate thread or task is not interrupted.
///
/// # Errors
/// After the deadline, that `what` gave no answer.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, AgentError> {
    tokio::time::timeout(deadline, answer).await.unwrap_or_else(|_| {
        let deadline = deadline.as_secs();
        Err(AgentError::failed(format!("{what} gave no answer within {deadline} s: see that its share can be reached")))
    })
}

/// Probes files that may be on a share whose server is away, a few at a time.
pub(crate) struct Probes {
    free: Arc<Semaphore>,
    within: Duration,
}

impl Default for Probes {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(PROBES_MAX)), within: PROBE_WITHIN }
    }
}

impl Probes {
    /// Runs a call that changes nothing. Beyond the limit of simultaneous calls it is not begun.
    ///
    /// # Errors
    /// If it has not ended in time, or too many others are still running: ask again later. The error names `what`.
    pub(crate) async fn probe<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AgentError> {
        let free = Arc::clone(&self.free);
        let probe = async move {
            let permit = free.acquire_owned().await.expect("it is never closed");
            blocking(move || {
                let answer = call();
                drop(permit);
                Ok(answer)
            })
            .await
        };
        within(self.within, what, probe).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_probe_that_hangs_holds_nobody_up_and_many_do_not_pile_up() {
        let probes = Probes { within: Duration::from_millis(20), ..Probes::default() };
        let gates: Vec<mpsc::Sender<()>> = {
            let mut gates = Vec::new();
            for _ in 0..PROBES_MAX {
                let (gate, closed) = mpsc::channel::<()>();
                assert!(probes.probe("disk vda", move || closed.recv()).await.is_err(), "it hangs");
                gates.push(gate);
            }
            gates
        };
        let began = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let note = Arc::clone(&began);
        let error = probes.probe("disk vdb", move || note.store(true, std::sync::atomic::Ordering::SeqCst)).await;
        assert!(error.is_err_and(|error| error.to_string().contains("disk vdb")));
        assert!(!began.load(std::sync::atomic::Ordering::SeqCst), "no thread is begun beyond the bound");
        drop(gates);
        let probes = Probes { within: PROBE_WITHIN, ..probes };
        assert_eq!(probes.probe("disk vdc", || 7).await.expect("they ended"), 7);
    }
}
