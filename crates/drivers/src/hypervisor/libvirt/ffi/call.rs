//! Helpers for all libvirt calls: its error, and strings in both directions.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

/// libvirt's description of an error.
#[derive(Clone, Debug)]
pub struct Fault {
    pub code: c_uint,
    /// Whether the connection broke during the call.
    pub broken: bool,
    pub message: String,
}

impl Fault {
    pub fn last() -> Self {
        // SAFETY: the pointer is NULL or points to this thread's last error, valid until this thread's next call.
        unsafe {
            let error = virt_sys::virGetLastError();
            if error.is_null() {
                return Self::own("libvirt gave no reason");
            }
            Self {
                code: (*error).code as c_uint,
                broken: (*error).domain as c_uint == virt_sys::VIR_FROM_RPC,
                message: text((*error).message).unwrap_or_default(),
            }
        }
    }

    pub fn own(message: &str) -> Self {
        Self { code: 0, broken: false, message: message.to_owned() }
    }

    #[cfg(test)]
    pub fn test(code: c_uint, broken: bool) -> Self {
        Self { code, broken, message: "a test".to_owned() }
    }

    /// Whether it says nothing about the VM: the daemon went away meanwhile, or the VM was busy for too long.
    pub fn passes(&self) -> bool {
        let codes = [
            virt_sys::VIR_ERR_RPC,
            virt_sys::VIR_ERR_NO_CONNECT,
            virt_sys::VIR_ERR_INVALID_CONN,
            virt_sys::VIR_ERR_OPERATION_TIMEOUT,
        ];
        self.broken || codes.contains(&self.code)
    }

    /// Whether the daemon went away meanwhile.
    pub fn is_away(&self) -> bool {
        self.passes() && (self.broken || self.code != virt_sys::VIR_ERR_OPERATION_TIMEOUT)
    }

    /// Whether the VM's state does not allow the query: it has no process.
    pub fn is_invalid_now(&self) -> bool {
        self.code == virt_sys::VIR_ERR_OPERATION_INVALID
    }

    pub fn is_no_domain(&self) -> bool {
        self.code == virt_sys::VIR_ERR_NO_DOMAIN
    }

    pub fn is_aborted(&self) -> bool {
        self.code == virt_sys::VIR_ERR_OPERATION_ABORTED
    }
}

pub type Done<T> = Result<T, Fault>;

pub fn check(result: c_int) -> Done<c_int> {
    if result < 0 { Err(Fault::last()) } else { Ok(result) }
}

pub fn c_string(text: &str) -> Done<CString> {
    CString::new(text).map_err(|_| Fault::own("a text holds a NUL byte"))
}

/// Copies a C string; NULL becomes `None`.
///
/// # Safety
/// `pointer` is NULL or points to a NUL-terminated string.
pub unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

/// Copies and frees a C string that libvirt allocated with malloc.
pub fn take_text(pointer: *mut c_char) -> Done<String> {
    // SAFETY: libvirt returns NULL or a string that the caller frees.
    unsafe {
        let copy = text(pointer).ok_or_else(Fault::last)?;
        free(pointer.cast());
        Ok(copy)
    }
}

unsafe extern "C" {
    pub fn free(pointer: *mut c_void);
}
