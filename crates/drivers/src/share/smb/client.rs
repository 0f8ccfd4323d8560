//! `smbclient` as a probe: how to call it, and how to read its output.

use std::{path::Path, process::Command};

use ferry_core::{place::Space, share_source::ShareSource, unc::UncPath, units::ByteCount};

use crate::{
    run::{Ended, Outcome},
    share::{ShareError, ShareFacts},
};

/// Logs in to the share and queries its free space. Debug level 4 prints the dialect.
pub fn command(unc: &UncPath, password_file: &Path) -> Command {
    let mut command = Command::new("smbclient");
    command
        .arg(format!("//{}/{}", unc.server(), unc.share()))
        .arg("-A")
        .arg(password_file)
        .args(["-d", "4", "-t", "10", "-c", "du"])
        .arg("--option=client min protocol=SMB3_00")
        .arg("--option=client max protocol=SMB3")
        .arg("--option=name resolve order=host");
    command
}

/// Interprets the output. NT status codes belong to SMB and do not change with the program's version.
pub fn read(outcome: &Outcome, unc: &UncPath, user: &str) -> Result<ShareFacts, ShareError> {
    if outcome.is_ok() {
        return Ok(ShareFacts { dialect: Some(dialect(&outcome.output)), space: space(&outcome.output) });
    }
    const NO_COMMON_DIALECT: [&str; 4] = [
        "NT_STATUS_NOT_SUPPORTED",
        "NT_STATUS_INVALID_NETWORK_RESPONSE",
        "NT_STATUS_CONNECTION_RESET",
        "NT_STATUS_CONNECTION_DISCONNECTED",
    ];
    const REFUSED_USER: [&str; 12] = [
        "NT_STATUS_LOGON_FAILURE",
        "NT_STATUS_ACCESS_DENIED",
        "NT_STATUS_WRONG_PASSWORD",
        "NT_STATUS_NO_SUCH_USER",
        "NT_STATUS_ACCOUNT_DISABLED",
        "NT_STATUS_ACCOUNT_EXPIRED",
        "NT_STATUS_ACCOUNT_LOCKED_OUT",
        "NT_STATUS_ACCOUNT_RESTRICTION",
        "NT_STATUS_PASSWORD_EXPIRED",
        "NT_STATUS_PASSWORD_MUST_CHANGE",
        "NT_STATUS_INVALID_LOGON_HOURS",
        "NT_STATUS_LOGON_TYPE_NOT_GRANTED",
    ];
    let failed = failure(outcome);
    let share: ShareSource = unc.into();
    let holds = |codes: &[&str]| codes.iter().any(|code| failed.contains(code));
    Err(if failed.contains("Protocol negotiation") && holds(&NO_COMMON_DIALECT) {
        ShareError::Dialect { share, reason: failed }
    } else if holds(&REFUSED_USER) {
        ShareError::Password { share, user: user.to_owned(), reason: failed }
    } else if failed.contains("NT_STATUS_BAD_NETWORK_NAME") {
        ShareError::NoShare { share }
    } else {
        ShareError::Unreachable { share, reason: failed }
    })
}

/// The line with the cause of smbclient's failure: the last one with a status code.
fn failure(outcome: &Outcome) -> String {
    match &outcome.ended {
        Ended::TimedOut => outcome.reason(),
        Ended::Exited(_) => outcome
            .output
            .lines()
            .rfind(|line| line.contains("NT_STATUS_"))
            .map(|line| line.trim().to_owned())
            .unwrap_or_else(|| outcome.reason()),
    }
}

/// `negotiated dialect[SMB3_11]` → `3.1.1`. A client that does not print it still speaks version 3 or later, as
/// configured.
fn dialect(output: &str) -> String {
    let named = output.split("negotiated dialect[").nth(1).and_then(|rest| rest.split(']').next());
    match named {
        Some("SMB3_11") => "3.1.1",
        Some("SMB3_02") => "3.0.2",
        Some("SMB3_00") => "3.0",
        _ => "3",
    }
    .to_owned()
}

/// `264212084 blocks of size 1024. 80103620 blocks available`
fn space(output: &str) -> Option<Space> {
    let line = output.lines().find(|line| line.contains("blocks available"))?;
    let (total, rest) = line.split_once("blocks of size")?;
    let (size, available) = rest.trim().split_once(". ")?;
    let size: u64 = size.trim().parse().ok()?;
    let bytes = |blocks: &str| blocks.trim().parse::<u64>().ok()?.checked_mul(size).map(ByteCount);
    Some(Space { total: bytes(total)?, free: bytes(available.split_whitespace().next()?)? })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    fn outcome(code: i32, output: &str) -> Outcome {
        Outcome { ended: Ended::Exited(ExitStatus::from_raw(code << 8)), output: output.to_owned() }
    }

    fn read(outcome: &Outcome) -> Result<ShareFacts, ShareError> {
        let unc = "\\\\fs1.ferry.test\\vms".parse().expect("well formed");
        super::read(outcome, &unc, "ann")
    }

    #[test]
    fn a_login_tells_dialect_and_space() {
        let text = " negotiated dialect[SMB3_11] against server[fs1.ferry.test]\n\n\
                    \t\t264212084 blocks of size 1024. 80103620 blocks available\nTotal number of bytes: 0\n";
        let facts = read(&outcome(0, text)).expect("a login");
        let space = Space { total: ByteCount::kib(264_212_084), free: ByteCount::kib(80_103_620) };
        assert_eq!(facts, ShareFacts { dialect: Some("3.1.1".into()), space: Some(space) });
        assert_eq!(read(&outcome(0, "")).expect("a login"), ShareFacts { dialect: Some("3".into()), space: None });
    }

    #[test]
    fn each_failure_is_told_apart_by_its_status_code() {
        // The last lines of smbclient 4.22.
        let negotiation = "Protocol negotiation to server fs1.ferry.test (for a protocol between SMB3_00 and SMB3) \
                           failed: NT_STATUS_NOT_SUPPORTED\n";
        let unreachable = "do_connect: Connection to fs1.ferry.test failed (Error NT_STATUS_CONNECTION_REFUSED)\n";
        assert!(matches!(read(&outcome(1, negotiation)), Err(ShareError::Dialect { .. })));
        let password = read(&outcome(1, "session setup failed: NT_STATUS_LOGON_FAILURE\n"));
        assert!(matches!(password, Err(ShareError::Password { user, .. }) if user == "ann"));
        let share = read(&outcome(1, "tree connect failed: NT_STATUS_BAD_NETWORK_NAME\n"));
        assert!(matches!(share, Err(ShareError::NoShare { .. })));
        assert!(matches!(read(&outcome(1, unreachable)), Err(ShareError::Unreachable { .. })));
        let silent = Outcome { ended: Ended::TimedOut, output: String::new() };
        assert!(matches!(read(&silent), Err(ShareError::Unreachable { .. })));
    }
}
