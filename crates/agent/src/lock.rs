//! How a mutex of this process is taken.

use std::sync::{Mutex, MutexGuard};

/// Takes a mutex. What is done while one is held cannot panic: fields are read and written, nothing else.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}
