//! How this process locks a mutex.

use std::sync::{Mutex, MutexGuard};

/// Locks a mutex. Code that holds one cannot panic: it only reads and writes fields.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}
