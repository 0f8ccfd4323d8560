//! Converts libvirt's faults to errors of the driver.

use super::ffi::Fault;
use crate::hypervisor::HypervisorError;

pub fn unreachable(fault: Fault) -> HypervisorError {
    HypervisorError::Unreachable(fault.message)
}

pub fn failed(what: impl Into<String>) -> impl FnOnce(Fault) -> HypervisorError {
    let what = what.into();
    move |fault| match fault.is_aborted() {
        true => HypervisorError::Aborted { what },
        false => HypervisorError::Failed { what, reason: fault.message },
    }
}

/// As [`failed`], for queries that may be repeated: a fault that is not about the VM means that libvirt is unreachable.
pub fn asked(what: impl Into<String>) -> impl FnOnce(Fault) -> HypervisorError {
    let what = what.into();
    move |fault| match fault.passes() {
        true => HypervisorError::Unreachable(format!("{what}: {}", fault.message)),
        false => failed(what)(fault),
    }
}

/// The result of a job query; `None` for a VM that no longer exists or has no process. Other faults are errors, because
/// there may be a job.
pub fn none_if_gone<T>(
    answer: Result<Option<T>, Fault>,
    what: impl FnOnce() -> String,
) -> Result<Option<T>, HypervisorError> {
    match answer {
        Err(fault) if fault.is_no_domain() || fault.is_invalid_now() => Ok(None),
        answer => answer.map_err(asked(what())),
    }
}

/// `None` if the domain is gone.
pub fn there<T>(read: Result<T, Fault>) -> Result<Option<T>, HypervisorError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(fault) if fault.is_no_domain() => Ok(None),
        Err(fault) => Err(asked("Could not read a VM's state and definition")(fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_job_a_vm_that_is_gone_and_a_daemon_that_is_away_are_three_things() {
        let read = |answer: Result<Option<u8>, Fault>| none_if_gone(answer, || "Could not look".to_owned());
        assert!(matches!(read(Ok(Some(1))), Ok(Some(1))));
        assert!(matches!(read(Ok(None)), Ok(None)));
        for (code, broken, expected) in [
            (virt_sys::VIR_ERR_NO_DOMAIN, false, "none"),
            (virt_sys::VIR_ERR_OPERATION_INVALID, false, "none"),
            (virt_sys::VIR_ERR_OPERATION_TIMEOUT, false, "unreachable"),
            (virt_sys::VIR_ERR_SYSTEM_ERROR, true, "unreachable"),
            (virt_sys::VIR_ERR_INTERNAL_ERROR, false, "failed"),
        ] {
            let found = match read(Err(Fault::test(code, broken))) {
                Ok(None) => "none",
                Err(HypervisorError::Unreachable(_)) => "unreachable",
                Err(HypervisorError::Failed { .. }) => "failed",
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{code}");
        }
    }

    #[test]
    fn a_connection_that_breaks_within_a_question_says_nothing_of_the_vm() {
        let read = |code, broken| there::<()>(Err(Fault::test(code, broken)));
        for (code, broken) in [
            // The daemon was restarted; the VM was busy for 30 s.
            (virt_sys::VIR_ERR_SYSTEM_ERROR, true),
            (virt_sys::VIR_ERR_INTERNAL_ERROR, true),
            (virt_sys::VIR_ERR_OPERATION_TIMEOUT, false),
        ] {
            let error = read(code, broken).expect_err("no answer");
            assert!(matches!(error, HypervisorError::Unreachable(_)), "{error}");
        }
        let refused = read(virt_sys::VIR_ERR_INTERNAL_ERROR, false).expect_err("refused");
        assert!(matches!(refused, HypervisorError::Failed { .. }), "{refused}");
        assert!(matches!(read(virt_sys::VIR_ERR_NO_DOMAIN, false), Ok(None)));
    }
}
