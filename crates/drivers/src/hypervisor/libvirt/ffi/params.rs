//! Lists of typed parameters.

use std::{
    ffi::{CStr, c_int, c_uint},
    ptr,
};

use super::call::{Done, c_string, check};

/// A list of typed parameters, freed when dropped.
pub struct Params {
    pub list: virt_sys::virTypedParameterPtr,
    pub count: c_int,
    room: c_int,
}

impl Default for Params {
    fn default() -> Self {
        Self { list: ptr::null_mut(), count: 0, room: 0 }
    }
}

impl Drop for Params {
    fn drop(&mut self) {
        // SAFETY: the list is NULL or owned, with `count` entries.
        unsafe { virt_sys::virTypedParamsFree(self.list, self.count) };
    }
}

impl Params {
    pub fn text(&mut self, name: &CStr, value: &str) -> Done<()> {
        let value = c_string(value)?;
        // SAFETY: libvirt grows the list and copies both strings.
        check(unsafe {
            virt_sys::virTypedParamsAddString(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value.as_ptr(),
            )
        })
        .map(drop)
    }

    pub fn count32(&mut self, name: &CStr, value: u32) -> Done<()> {
        // SAFETY: libvirt grows the list and copies the name.
        check(unsafe {
            virt_sys::virTypedParamsAddUInt(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value,
            )
        })
        .map(drop)
    }

    pub fn number(&mut self, name: &CStr, value: u64) -> Done<()> {
        // SAFETY: libvirt grows the list and copies the name.
        check(unsafe {
            virt_sys::virTypedParamsAddULLong(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value,
            )
        })
        .map(drop)
    }

    /// A value of any of libvirt's integer types; `None` if the parameter does not exist.
    pub fn get(&self, name: &CStr) -> Option<u64> {
        // SAFETY: the list is valid with `count` entries; the entry's type says which field of its value is set.
        unsafe {
            let entry = virt_sys::virTypedParamsGet(self.list, self.count, name.as_ptr());
            if entry.is_null() {
                return None;
            }
            match (*entry).type_ as c_uint {
                virt_sys::VIR_TYPED_PARAM_ULLONG => Some((*entry).value.ul),
                virt_sys::VIR_TYPED_PARAM_UINT => Some(u64::from((*entry).value.ui)),
                virt_sys::VIR_TYPED_PARAM_LLONG => u64::try_from((*entry).value.l).ok(),
                virt_sys::VIR_TYPED_PARAM_INT => u64::try_from((*entry).value.i).ok(),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::libvirt::ffi::connection::tests::connection;

    #[test]
    fn typed_parameters_are_read_whatever_their_integer_type() {
        // libvirt must be initialised before any of its functions is called.
        let _connection = connection();
        let mut params = Params::default();
        params.number(c"bytes", 7).expect("added");
        params.text(c"name", "x").expect("added");
        assert_eq!((params.get(c"bytes"), params.get(c"name"), params.get(c"none")), (Some(7), None, None));
    }
}
