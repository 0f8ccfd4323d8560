//! Repeats what a share did not do, as long as it may come back: a file server that starts again is away for seconds.

use std::{io, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    error::{Fault, SpoolError},
    share::{Operation, Share},
};

/// How long a share may be away.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(30);
/// How long one attempt may take: a large segment on a slow share, but not one that is gone.
const ATTEMPT_MAX: Duration = Duration::from_secs(60);
/// Wait before the first repetition; it doubles up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Whether the share answered and will not answer otherwise.
pub(super) fn is_definite(error: &io::Error) -> bool {
    use io::ErrorKind::{
        DirectoryNotEmpty, InvalidData, InvalidInput, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull, Unsupported,
    };
    [
        DirectoryNotEmpty,
        InvalidData,
        InvalidInput,
        NotADirectory,
        NotFound,
        PermissionDenied,
        QuotaExceeded,
        ReadOnlyFilesystem,
        StorageFull,
        Unsupported,
    ]
    .contains(&error.kind())
}

/// The error for a failure that is not waited for any longer, after `after`.
pub(super) fn fault(share: &dyn Share, what: &'static str, after: Duration, source: io::Error) -> Fault {
    let share = share.name().to_owned();
    Arc::new(match is_definite(&source) {
        true => SpoolError::Refused { share, what, source },
        false => SpoolError::Unreachable { share, what, after, source },
    })
}

/// Does something on a share, again after a failure that may pass.
///
/// # Errors
/// [`SpoolError::Refused`] at once; [`SpoolError::Unreachable`] after [`RETRY_FOR`].
pub(super) async fn persist<'a, T>(
    share: &'a dyn Share,
    what: &'static str,
    mut attempt: impl FnMut() -> Operation<'a, T> + Send,
) -> Result<T, Fault> {
    let mut failing_since = None;
    let mut wait = WAIT_MIN;
    loop {
        let begun = Instant::now();
        let error = match tokio::time::timeout(ATTEMPT_MAX, attempt()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        let after = failing_since.get_or_insert(begun).elapsed();
        if is_definite(&error) || after >= RETRY_FOR {
            return Err(fault(share, what, after, error));
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}
