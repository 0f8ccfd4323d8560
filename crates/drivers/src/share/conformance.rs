//! What every share driver keeps, as one list of claims. Panics at the first that does not hold.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::ShareCredentials,
    finding::{FindingId, Severity},
    location::UncPath,
    place::Space,
};

use super::{ShareDriver, ShareError};

/// Longest that any call may take when the file server is dead.
const CALL_MAX: Duration = Duration::from_secs(45);
/// How long a mount may need to see a file server that came back.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// Two hosts that reach one share.
pub struct Site<'a> {
    /// One host's driver.
    pub first: &'a dyn ShareDriver,
    /// The other's.
    pub second: &'a dyn ShareDriver,
    /// The share.
    pub unc: UncPath,
    /// Who may log in.
    pub credentials: ShareCredentials,
    /// An existing directory below which mount points may be made.
    pub directory: PathBuf,
    /// Starts (`true`) and stops the file server.
    pub set_up: &'a dyn Fn(bool),
}

/// Runs the whole suite. The file server is up before and after.
pub fn run(site: &Site<'_>) {
    a_probe_tells_smb_3_and_space(site);
    each_refusal_is_told_apart(site);
    what_one_host_writes_the_other_reads(site);
    a_mounted_share_tells_its_space_and_no_other_path_does(site);
    attaching_and_detaching_may_be_repeated(site);
    only_a_mount_of_the_share_is_adopted(site);
    nothing_else_is_unmounted_or_covered(site);
    a_dead_file_server_is_told_in_time(site);
}

fn a_probe_tells_smb_3_and_space(site: &Site<'_>) {
    let facts = site.first.probe(&site.unc, &site.credentials).expect("a login");
    assert!(facts.dialect.starts_with('3'), "{facts:?}");
    assert!(facts.space.is_some_and(|space| is_sensible(&space)), "{facts:?}");
}

fn each_refusal_is_told_apart(site: &Site<'_>) {
    let at = site.directory.join("refused");
    let wrong = ShareCredentials { password: "wrong".into(), ..site.credentials.clone() };
    let missing: UncPath = format!("\\\\{}\\missing", site.unc.server()).parse().expect("well formed");
    let elsewhere: UncPath = "\\\\nobody.ferry.test\\vms".parse().expect("well formed");
    let rows: [(&str, &UncPath, &ShareCredentials, FindingId); 3] = [
        ("a wrong password", &site.unc, &wrong, FindingId::SharePassword),
        ("a missing share", &missing, &site.credentials, FindingId::ShareUnreachable),
        ("a missing server", &elsewhere, &site.credentials, FindingId::ShareUnreachable),
    ];
    for (row, unc, credentials, id) in rows {
        let probed = site.first.probe(unc, credentials).expect_err(row);
        let attached = site.first.attach(unc, credentials, &at).expect_err(row);
        for error in [probed, attached] {
            let finding = error.finding();
            assert_eq!((finding.id, finding.severity), (id, Severity::Blocks), "{row}: {error}");
            assert!(!finding.message.contains(&credentials.password), "{row}: {error}");
        }
        assert!(site.first.check(unc, &at).is_err(), "{row}: nothing is mounted after a refusal");
    }
}

fn what_one_host_writes_the_other_reads(site: &Site<'_>) {
    let (here, there) = (site.directory.join("a/one"), site.directory.join("b/two"));
    site.first.attach(&site.unc, &site.credentials, &here).expect("attached");
    site.second.attach(&site.unc, &site.credentials, &there).expect("attached");
    assert!(site.first.waits(&here), "what Ferry mounts is mounted hard");
    assert!(site.first.locks_stay(&here), "what Ferry mounts leaves QEMU's locks on the host");
    assert!(!there.join("token").exists());
    fs::write(here.join("token"), "4711").expect("written");
    assert_eq!(fs::read_to_string(there.join("token")).expect("read"), "4711");
    fs::remove_file(there.join("token")).expect("removed");
    for (driver, at) in [(site.first, &here), (site.second, &there)] {
        driver.check(&site.unc, at).expect("usable");
        driver.detach(&site.unc, at).expect("detached");
        assert!(!at.join("token").exists());
    }
}

/// Also where the mount's own statvfs answers zeros.
fn a_mounted_share_tells_its_space_and_no_other_path_does(site: &Site<'_>) {
    let at = site.directory.join("space");
    let other: UncPath = format!("\\\\{}\\other", site.unc.server()).parse().expect("well formed");
    site.first.attach(&site.unc, &site.credentials, &at).expect("attached");
    let space = site.first.space(&site.unc, Some(&site.credentials), &at);
    assert!(space.is_some_and(|space| is_sensible(&space)), "{space:?}");
    let probed = site.first.probe(&site.unc, &site.credentials).expect("a login").space.expect("told");
    assert_eq!(space.map(|space| space.total), Some(probed.total), "the file server says the same");
    assert_eq!(site.first.space(&other, Some(&site.credentials), &at), None, "another share is mounted there");
    site.first.detach(&site.unc, &at).expect("detached");
    assert_eq!(site.first.space(&site.unc, Some(&site.credentials), &at), None, "nothing is mounted there");
}

fn is_sensible(space: &Space) -> bool {
    space.free.0 > 0 && space.free <= space.total
}

fn attaching_and_detaching_may_be_repeated(site: &Site<'_>) {
    let at = site.directory.join("again");
    for _ in 0..2 {
        site.first.attach(&site.unc, &site.credentials, &at).expect("attached");
        site.first.attach(&site.unc, &site.credentials, &at).expect("attached already");
        fs::write(at.join("file"), "x").expect("written");
        site.first.detach(&site.unc, &at).expect("detached");
        site.first.detach(&site.unc, &at).expect("detached already");
        assert!(!at.join("file").exists(), "nothing is left at the mount point");
    }
    site.first.attach(&site.unc, &site.credentials, &at).expect("attached");
    fs::remove_file(at.join("file")).expect("it was on the share");
    site.first.detach(&site.unc, &at).expect("detached");
}

fn only_a_mount_of_the_share_is_adopted(site: &Site<'_>) {
    let at = site.directory.join("own");
    site.first.attach(&site.unc, &site.credentials, &at).expect("attached");
    // A mount that this driver did not make: seen by a second driver of the same host.
    site.first.adopt(&site.unc, &at).expect("a mount of it");
    let other: UncPath = format!("\\\\{}\\other", site.unc.server()).parse().expect("well formed");
    let refused = [(&other, at.as_path()), (&site.unc, site.directory.as_path()), (&site.unc, Path::new("relative"))];
    for (unc, path) in refused {
        let result = site.first.adopt(unc, path);
        assert!(matches!(result, Err(ShareError::NotAMount { .. })), "{unc} at {}: {result:?}", path.display());
    }
    site.first.detach(&site.unc, &at).expect("detached");
}

fn nothing_else_is_unmounted_or_covered(site: &Site<'_>) {
    let at = site.directory.join("taken");
    site.first.attach(&site.unc, &site.credentials, &at).expect("attached");
    let other: UncPath = format!("\\\\{}\\other", site.unc.server()).parse().expect("well formed");
    for result in [site.first.attach(&other, &site.credentials, &at), site.first.detach(&other, &at)] {
        assert!(matches!(result, Err(ShareError::Mount { .. })), "{result:?}");
    }
    site.first.check(&site.unc, &at).expect("still there");
    site.first.detach(&site.unc, &at).expect("detached");
}

fn a_dead_file_server_is_told_in_time(site: &Site<'_>) {
    let at = site.directory.join("dead");
    site.first.attach(&site.unc, &site.credentials, &at).expect("attached");
    (site.set_up)(false);
    let started = Instant::now();
    let probed = site.first.probe(&site.unc, &site.credentials).expect_err("the server is down");
    assert_eq!(probed.finding().id, FindingId::ShareUnreachable, "{probed}");
    let checked = site.first.check(&site.unc, &at).expect_err("the server is down");
    assert_eq!(checked.finding().id, FindingId::ShareUnreachable, "{checked}");
    assert!(started.elapsed() < CALL_MAX, "{:?}", started.elapsed());
    (site.set_up)(true);
    let deadline = Instant::now() + RECOVERY_MAX;
    while let Err(error) = site.first.check(&site.unc, &at) {
        assert!(Instant::now() < deadline, "the share did not come back: {error}");
    }
    site.first.detach(&site.unc, &at).expect("detached");
}
