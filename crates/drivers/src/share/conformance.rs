//! The conformance suite that every share driver must pass, as a list of claims. Panics at the first that fails.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::ShareCredentials,
    finding::{FindingId, Severity},
    place::Space,
    share_source::ShareSource,
};

use super::{ShareDriver, ShareError};

/// Time limit of any call when the file server is dead.
const CALL_MAX: Duration = Duration::from_secs(45);
/// How long a mount may need to recover when its file server is up again.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// Two hosts that reach one share.
pub struct Site<'a> {
    /// One host's driver.
    pub first: &'a dyn ShareDriver,
    /// The other's.
    pub second: &'a dyn ShareDriver,
    /// The share.
    pub share: ShareSource,
    /// Credentials for the share, if it requires a login.
    pub credentials: Option<ShareCredentials>,
    /// An existing directory for mount points.
    pub directory: PathBuf,
    /// Starts (`true`) and stops the file server.
    pub set_up: &'a dyn Fn(bool),
}

impl Site<'_> {
    /// A share that does not exist on the same server.
    fn missing(&self) -> ShareSource {
        self.sibling("missing")
    }

    /// Another share of the same server.
    fn other(&self) -> ShareSource {
        self.sibling("other")
    }

    fn sibling(&self, name: &str) -> ShareSource {
        let text = self.share.to_string();
        let end = text.rfind(['/', '\\']).expect("it has a name") + 1;
        format!("{}{name}", &text[..end]).parse().expect("well formed")
    }

    /// A share of a server that does not exist.
    fn elsewhere(&self) -> ShareSource {
        let server = self.share.server().expect("it has a server");
        self.share.to_string().replace(server, "nobody.ferry.test").parse().expect("well formed")
    }

    fn attach(&self, driver: &dyn ShareDriver, at: &Path) {
        driver.attach(&self.share, self.credentials.as_ref(), at).expect("attached");
    }

    fn space(&self, share: &ShareSource, at: &Path) -> Option<Space> {
        self.first.space(share, self.credentials.as_ref(), at)
    }
}

/// Runs the whole suite. The file server is up before and after.
pub fn run(site: &Site<'_>) {
    a_probe_tells_what_can_be_known(site);
    each_refusal_is_told_apart(site);
    what_one_host_writes_the_other_reads(site);
    a_mounted_share_tells_its_space_and_no_other_path_does(site);
    attaching_and_detaching_may_be_repeated(site);
    only_a_mount_of_the_share_is_adopted(site);
    nothing_else_is_unmounted_or_covered(site);
    a_dead_file_server_is_told_in_time(site);
}

fn a_probe_tells_what_can_be_known(site: &Site<'_>) {
    let facts = site.first.probe(&site.share, site.credentials.as_ref()).expect("it answers");
    if site.share.wants_login() {
        assert!(facts.dialect.as_deref().is_some_and(|dialect| dialect.starts_with('3')), "{facts:?}");
        assert!(facts.space.is_some_and(|space| is_sensible(&space)), "{facts:?}");
    }
}

fn each_refusal_is_told_apart(site: &Site<'_>) {
    let at = site.directory.join("refused");
    let (missing, elsewhere) = (site.missing(), site.elsewhere());
    // Only a login reveals that a share does not exist; without one, the mount fails with a message.
    let no_share = if site.share.wants_login() { FindingId::ShareUnreachable } else { FindingId::ShareMount };
    let mut rows = vec![
        ("a missing server", &elsewhere, site.credentials.clone(), FindingId::ShareUnreachable),
        ("a missing share", &missing, site.credentials.clone(), no_share),
    ];
    if let Some(right) = &site.credentials {
        let wrong = ShareCredentials { password: "wrong".into(), ..right.clone() };
        rows.push(("a wrong password", &site.share, Some(wrong), FindingId::SharePassword));
        rows.push(("no password", &site.share, None, FindingId::SharePassword));
    }
    for (row, share, credentials, id) in rows {
        let mut errors = vec![site.first.attach(share, credentials.as_ref(), &at).expect_err(row)];
        if id != FindingId::ShareMount {
            errors.push(site.first.probe(share, credentials.as_ref()).expect_err(row));
        }
        for error in errors {
            let finding = error.finding();
            assert_eq!((finding.id, finding.severity), (id, Severity::Blocks), "{row}: {error}");
            let password = credentials.as_ref().map(|credentials| credentials.password.as_str());
            assert!(!password.is_some_and(|password| finding.message.to_string().contains(password)), "{row}: {error}");
        }
        assert!(site.first.check(share, &at).is_err(), "{row}: nothing is mounted after a refusal");
    }
}

fn what_one_host_writes_the_other_reads(site: &Site<'_>) {
    let (here, there) = (site.directory.join("a/one"), site.directory.join("b/two"));
    site.attach(site.first, &here);
    site.attach(site.second, &there);
    assert!(site.first.waits(&here), "what Ferry mounts is mounted hard");
    assert!(site.first.locks_stay(&here), "what Ferry mounts leaves QEMU's locks on the host");
    assert!(!there.join("token").exists());
    fs::write(here.join("token"), "4711").expect("written");
    assert_eq!(fs::read_to_string(there.join("token")).expect("read"), "4711");
    fs::remove_file(there.join("token")).expect("removed");
    for (driver, at) in [(site.first, &here), (site.second, &there)] {
        driver.check(&site.share, at).expect("usable");
        driver.detach(&site.share, at).expect("detached");
        assert!(!at.join("token").exists());
    }
}

/// Even if statvfs on the mount returns zeroes.
fn a_mounted_share_tells_its_space_and_no_other_path_does(site: &Site<'_>) {
    let at = site.directory.join("space");
    let other = site.other();
    site.attach(site.first, &at);
    let space = site.space(&site.share, &at);
    assert!(space.is_some_and(|space| is_sensible(&space)), "{space:?}");
    if let Some(probed) = site.first.probe(&site.share, site.credentials.as_ref()).expect("it answers").space {
        assert_eq!(space.map(|space| space.total), Some(probed.total), "the file server says the same");
    }
    assert_eq!(site.space(&other, &at), None, "another share is mounted there");
    site.first.detach(&site.share, &at).expect("detached");
    assert_eq!(site.space(&site.share, &at), None, "nothing is mounted there");
}

fn is_sensible(space: &Space) -> bool {
    space.free.0 > 0 && space.free <= space.total
}

fn attaching_and_detaching_may_be_repeated(site: &Site<'_>) {
    let at = site.directory.join("again");
    for _ in 0..2 {
        site.attach(site.first, &at);
        site.attach(site.first, &at);
        fs::write(at.join("file"), "x").expect("written");
        site.first.detach(&site.share, &at).expect("detached");
        site.first.detach(&site.share, &at).expect("detached already");
        assert!(!at.join("file").exists(), "nothing is left at the mount point");
    }
    site.attach(site.first, &at);
    fs::remove_file(at.join("file")).expect("it was on the share");
    site.first.detach(&site.share, &at).expect("detached");
}

fn only_a_mount_of_the_share_is_adopted(site: &Site<'_>) {
    let at = site.directory.join("own");
    site.attach(site.first, &at);
    // A mount that this driver did not make: a second driver of the same host sees it.
    site.first.adopt(&site.share, &at).expect("a mount of it");
    let other = site.other();
    let refused =
        [(&other, at.as_path()), (&site.share, site.directory.as_path()), (&site.share, Path::new("relative"))];
    for (share, path) in refused {
        let result = site.first.adopt(share, path);
        assert!(matches!(result, Err(ShareError::NotAMount { .. })), "{share} at {}: {result:?}", path.display());
    }
    site.first.detach(&site.share, &at).expect("detached");
}

fn nothing_else_is_unmounted_or_covered(site: &Site<'_>) {
    let at = site.directory.join("taken");
    site.attach(site.first, &at);
    let other = site.other();
    for result in [site.first.attach(&other, site.credentials.as_ref(), &at), site.first.detach(&other, &at)] {
        assert!(matches!(result, Err(ShareError::Mount { .. })), "{result:?}");
    }
    site.first.check(&site.share, &at).expect("still there");
    site.first.detach(&site.share, &at).expect("detached");
}

fn a_dead_file_server_is_told_in_time(site: &Site<'_>) {
    let at = site.directory.join("dead");
    site.attach(site.first, &at);
    (site.set_up)(false);
    let started = Instant::now();
    let probed = site.first.probe(&site.share, site.credentials.as_ref()).expect_err("the server is down");
    assert_eq!(probed.finding().id, FindingId::ShareUnreachable, "{probed}");
    let checked = site.first.check(&site.share, &at).expect_err("the server is down");
    assert_eq!(checked.finding().id, FindingId::ShareUnreachable, "{checked}");
    assert!(started.elapsed() < CALL_MAX, "{:?}", started.elapsed());
    (site.set_up)(true);
    let deadline = Instant::now() + RECOVERY_MAX;
    while let Err(error) = site.first.check(&site.share, &at) {
        assert!(Instant::now() < deadline, "the share did not come back: {error}");
    }
    site.first.detach(&site.share, &at).expect("detached");
}

/// A path with the same content on two hosts: two mounts of one file system, made by their administrator.
pub struct PathSite<'a> {
    /// The driver.
    pub driver: &'a dyn ShareDriver,
    /// The share, which is a path.
    pub share: ShareSource,
    /// Its path on each host; nothing is mounted there yet.
    pub paths: [PathBuf; 2],
    /// Mounts it, as the administrator does.
    pub mount: &'a dyn Fn(&Path),
    /// Mounts something else.
    pub mount_other: &'a dyn Fn(&Path),
    /// Unmounts what is mounted.
    pub unmount: &'a dyn Fn(&Path),
}

/// Claims about shares whose source is a path. Nothing is mounted before and after.
pub fn run_paths(site: &PathSite<'_>) {
    let [here, there] = &site.paths;
    for path in [here, &here.join("missing"), Path::new("relative")] {
        let refused = site.driver.adopt(&site.share, path);
        assert!(matches!(refused, Err(ShareError::NotAMount { .. } | ShareError::Unreachable { .. })), "{refused:?}");
    }
    assert!(
        matches!(site.driver.attach(&site.share, None, here), Err(ShareError::Mount { .. })),
        "Ferry mounts no path"
    );
    site.driver.probe(&site.share, None).expect("a path has no server to be asked");
    for path in [here, there] {
        (site.mount)(path);
        site.driver.adopt(&site.share, path).expect("a mount");
        site.driver.check(&site.share, path).expect("usable");
        assert!(site.driver.waits(path), "nothing else is known");
        let space = site.driver.space(&site.share, None, path);
        assert!(space.is_some_and(|space| is_sensible(&space)), "{space:?}");
    }
    fs::write(here.join("token"), "4711").expect("written");
    assert_eq!(fs::read_to_string(there.join("token")).expect("read"), "4711");
    let mounted = site.driver.mounted(here).expect("known");
    assert_eq!(site.driver.mounted(here), Some(mounted.clone()), "it does not change by itself");
    site.driver.detach(&site.share, here).expect("it is the administrator's to unmount");
    site.driver.check(&site.share, here).expect("still there");
    (site.unmount)(here);
    assert_ne!(site.driver.mounted(here), Some(mounted.clone()), "it is told when it is gone");
    (site.mount_other)(here);
    assert_ne!(site.driver.mounted(here), Some(mounted), "and when something else is there");
    (site.unmount)(here);
    (site.unmount)(there);
}
