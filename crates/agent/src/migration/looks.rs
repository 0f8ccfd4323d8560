//! Looks at files that may lie on a share whose server is gone: such a call blocks for as long as that lasts, and must
//! neither hold up the agent's other work nor pile up.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use crate::AgentError;

/// Files answer within this, or are not waited for.
const WITHIN: Duration = Duration::from_secs(10);
/// Looks at once, those among them that hang: each is a thread.
const LOOKS_MAX: usize = 8;

/// The looks of one agent.
pub(super) struct Looks {
    free: Arc<Semaphore>,
    within: Duration,
}

impl Default for Looks {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(LOOKS_MAX)), within: WITHIN }
    }
}

impl Looks {
    /// Runs what only looks, on a thread of its own.
    ///
    /// # Errors
    /// When it has not ended in time, or too many others have not: ask again later. `what` is said to be looked at.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AgentError> {
        let free = Arc::clone(&self.free);
        let looking = async move {
            let turn = free.acquire_owned().await.expect("it is never closed");
            let looked = tokio::task::spawn_blocking(move || {
                let looked = call();
                drop(turn);
                looked
            });
            looked.await.map_err(|error| AgentError::Carrier(error.to_string()))
        };
        tokio::time::timeout(self.within, looking).await.unwrap_or_else(|_| {
            let within = self.within.as_secs();
            Err(AgentError::Carrier(format!(
                "{what} did not answer within {within} s: see that its share can be reached"
            )))
        })
    }
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn off_thread<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let outcome = tokio::task::spawn_blocking(call).await;
    outcome.unwrap_or_else(|error| Err(AgentError::Carrier(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_look_that_hangs_holds_nobody_up_and_many_do_not_pile_up() {
        let looks = Looks { within: Duration::from_millis(20), ..Looks::default() };
        let gates: Vec<mpsc::Sender<()>> = {
            let mut gates = Vec::new();
            for _ in 0..LOOKS_MAX {
                let (gate, closed) = mpsc::channel::<()>();
                assert!(looks.look("disk vda", move || closed.recv()).await.is_err(), "it hangs");
                gates.push(gate);
            }
            gates
        };
        let began = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let note = Arc::clone(&began);
        let error = looks.look("disk vdb", move || note.store(true, std::sync::atomic::Ordering::SeqCst)).await;
        assert!(error.is_err_and(|error| error.to_string().contains("disk vdb")));
        assert!(!began.load(std::sync::atomic::Ordering::SeqCst), "no thread is begun beyond the bound");
        drop(gates);
        let looks = Looks { within: WITHIN, ..looks };
        assert_eq!(looks.look("disk vdc", || 7).await.expect("they ended"), 7);
    }
}
