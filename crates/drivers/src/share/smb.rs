//! SMB 3 shares: probed with `smbclient`, mounted by the kernel's cifs client where there is one, else by `smbnetfs`.
//!
//! A share is mounted at `ROOT/ID`. smbnetfs shows a network below its mount point, so the share's content appears at
//! `ROOT/ID/SERVER/SHARE`; with cifs it is `ROOT/ID` itself. Credentials are in files that only root reads.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ferry_core::{api::agent::ShareCredentials, id::ShareId, location::UncPath};

use super::{Attach, ShareDriver, ShareError, command};

/// How long the file server may take to answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);
/// How long a mount may take.
const MOUNT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a look at a mount may take before it counts as hanging.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// The SMB client of this host.
pub struct Smb {
    root: PathBuf,
    private: PathBuf,
}

impl Smb {
    /// Mounts below `root`; keeps credentials below `private`.
    pub fn new(root: PathBuf, private: PathBuf) -> Self {
        Self { root, private }
    }

    fn mount_point(&self, id: ShareId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// A folder for one share's credentials that only root enters.
    fn private_dir(&self, name: &str) -> io::Result<PathBuf> {
        let dir = self.private.join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(dir)
    }

    fn mount_cifs(&self, attach: &Attach<'_>, point: &Path) -> Result<(), String> {
        let dir = self.private_dir(&attach.id.to_string()).map_err(|error| error.to_string())?;
        let file = dir.join("credentials");
        write_private(&file, &credentials_file(attach.credentials)).map_err(|error| error.to_string())?;
        let source = format!("//{}/{}", attach.unc.server(), attach.unc.share());
        let options = format!(
            "vers=3.1.1,hard,cache=strict,mfsymlinks,nobrl,file_mode=0666,dir_mode=0777,credentials={}",
            file.display()
        );
        let arguments: [&OsStr; 6] =
            ["-t".as_ref(), "cifs".as_ref(), "-o".as_ref(), options.as_ref(), source.as_ref(), point.as_os_str()];
        succeeded(command::run("mount", &arguments, &[], MOUNT_DEADLINE))
    }

    fn mount_fuse(&self, attach: &Attach<'_>, point: &Path) -> Result<(), String> {
        let home = self.private_dir(&attach.id.to_string()).map_err(|error| error.to_string())?;
        let dir = self.private_dir(&format!("{}/.smb", attach.id)).map_err(|error| error.to_string())?;
        let (user, password) = (quoted(&attach.credentials.user)?, quoted(&attach.credentials.password)?);
        let share = quoted(&format!("{}/{}", attach.unc.server(), attach.unc.share()))?;
        let files = [
            ("smbnetfs.auth", format!("auth {share} {user} {password}\n")),
            ("smbnetfs.conf", "include \"smbnetfs.auth\"\n".to_owned()),
            ("smb.conf", "[global]\nclient min protocol = SMB3_00\nname resolve order = host\n".to_owned()),
        ];
        for (name, content) in files {
            write_private(&dir.join(name), &content).map_err(|error| error.to_string())?;
        }
        let arguments: [&OsStr; 3] = [point.as_os_str(), "-o".as_ref(), "allow_other".as_ref()];
        succeeded(command::run("smbnetfs", &arguments, &[("HOME", home.as_os_str())], MOUNT_DEADLINE))
    }
}

impl ShareDriver for Smb {
    fn probe(&self, unc: &UncPath, credentials: &ShareCredentials) -> Result<(), ShareError> {
        let unreachable = |reason: String| ShareError::Unreachable { unc: unc.clone(), reason };
        let dir = self.private_dir("probe").map_err(|error| unreachable(error.to_string()))?;
        let file = tempfile::Builder::new()
            .prefix("auth")
            .tempfile_in(dir)
            .and_then(|mut file| file.write_all(credentials_file(credentials).as_bytes()).map(|()| file))
            .map_err(|error| unreachable(error.to_string()))?;
        let share = format!("//{}/{}", unc.server(), unc.share());
        let arguments: [&OsStr; 8] = [
            share.as_ref(),
            "-A".as_ref(),
            file.path().as_os_str(),
            "-m".as_ref(),
            "SMB3".as_ref(),
            "--option=client min protocol=SMB3_00".as_ref(),
            "-c".as_ref(),
            "du".as_ref(),
        ];
        let said = command::run("smbclient", &arguments, &[], PROBE_DEADLINE).map_err(unreachable)?;
        if said.success { Ok(()) } else { Err(fault_of(&said.text, unc, &credentials.user)) }
    }

    fn attach(&self, attach: &Attach<'_>) -> Result<PathBuf, ShareError> {
        let point = self.mount_point(attach.id);
        let fault = |reason: String| ShareError::Mount { unc: attach.unc.clone(), path: point.clone(), reason };
        fs::create_dir_all(&point).map_err(|error| fault(error.to_string()))?;
        let kernel = kernel_has_cifs();
        let content = if kernel { point.clone() } else { point.join(attach.unc.server()).join(attach.unc.share()) };
        if mount_at(&point, &mounts()).is_none() {
            if kernel { self.mount_cifs(attach, &point) } else { self.mount_fuse(attach, &point) }.map_err(fault)?;
        }
        if let Some(trouble) = self.trouble(&content) {
            let _ = unmount(&point);
            return Err(fault(trouble));
        }
        Ok(content)
    }

    fn adopt(&self, unc: &UncPath, path: &Path) -> Result<PathBuf, ShareError> {
        let fault = |reason: String| ShareError::Mount { unc: unc.clone(), path: path.to_owned(), reason };
        if !path.starts_with(&self.root) {
            return Err(fault(format!(
                "it does not lie below {}, which libvirt knows as shared; mount it there",
                self.root.display()
            )));
        }
        judge_adoption(unc, path, &mounts()).map_err(fault)?;
        match self.trouble(path) {
            None => Ok(path.to_owned()),
            Some(trouble) => Err(fault(trouble)),
        }
    }

    fn detach(&self, id: ShareId, unc: &UncPath) -> Result<(), ShareError> {
        let point = self.mount_point(id);
        if mount_at(&point, &mounts()).is_some() {
            unmount(&point).map_err(|reason| ShareError::Mount { unc: unc.clone(), path: point.clone(), reason })?;
        }
        let _ = fs::remove_dir(&point);
        let _ = fs::remove_dir_all(self.private.join(id.to_string()));
        Ok(())
    }

    fn trouble(&self, path: &Path) -> Option<String> {
        // A program of its own: a hanging mount then hangs that, and not a thread of ours.
        match command::run("stat", &[OsStr::new("-L"), path.as_os_str()], &[], LOOK_DEADLINE) {
            Ok(said) if said.success => None,
            Ok(said) => Some(last_line(&said.text)),
            Err(error) => Some(format!("the mount does not answer ({error})")),
        }
    }
}

fn unmount(point: &Path) -> Result<(), String> {
    succeeded(command::run("umount", &[point.as_os_str()], &[], MOUNT_DEADLINE))
}

fn succeeded(outcome: Result<command::Said, String>) -> Result<(), String> {
    let said = outcome?;
    if said.success { Ok(()) } else { Err(last_line(&said.text)) }
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason was given").trim().to_owned()
}

/// What smbclient's words mean.
fn fault_of(text: &str, unc: &UncPath, user: &str) -> ShareError {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["NT_STATUS_LOGON_FAILURE", "NT_STATUS_ACCESS_DENIED", "NT_STATUS_ACCOUNT", "NT_STATUS_PASSWORD"]) {
        return ShareError::Password { unc: unc.clone(), user: user.to_owned() };
    }
    // A server that speaks only older dialects answers the negotiation with an error, or hangs up.
    if has(&["Protocol negotiation", "protocol negotiation", "NT_STATUS_NOT_SUPPORTED", "NT_STATUS_INVALID_NETWORK_RESPONSE"]) {
        return ShareError::Dialect { unc: unc.clone() };
    }
    ShareError::Unreachable { unc: unc.clone(), reason: last_line(text) }
}

fn credentials_file(credentials: &ShareCredentials) -> String {
    match credentials.user.split_once('\\') {
        Some((domain, user)) => format!("username={user}\npassword={}\ndomain={domain}\n", credentials.password),
        None => format!("username={}\npassword={}\n", credentials.user, credentials.password),
    }
}

/// A word of smbnetfs's configuration.
fn quoted(word: &str) -> Result<String, String> {
    if word.contains(['\n', '\r', '\0']) {
        return Err("a user or password with a line break cannot be used".to_owned());
    }
    Ok(format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn write_private(path: &Path, content: &str) -> io::Result<()> {
    let _ = fs::remove_file(path);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content.as_bytes())
}

fn kernel_has_cifs() -> bool {
    fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.lines().any(|line| line.trim_start() == "cifs"))
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
}

fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse_mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        Some(Mount {
            point: unescaped(left.split(' ').nth(4)?).into(),
            kind: right.next()?.to_owned(),
            source: unescaped(right.next()?),
        })
    };
    text.lines().filter_map(mount).collect()
}

/// The kernel writes blanks and backslashes as octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

fn mount_at<'a>(point: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    mounts.iter().rfind(|mount| mount.point == point)
}

/// Whether `path` is the content of `unc`, as far as the mount table tells.
fn judge_adoption(unc: &UncPath, path: &Path, mounts: &[Mount]) -> Result<(), String> {
    let holding = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
        .ok_or("nothing is mounted there")?;
    let same = |server: &str, share: &str| {
        server.eq_ignore_ascii_case(unc.server()) && share.eq_ignore_ascii_case(unc.share())
    };
    match holding.kind.as_str() {
        "cifs" | "smb3" => {
            let source = holding.source.trim_start_matches(['/', '\\']).replace('\\', "/");
            let (server, share) = source.split_once('/').unwrap_or((&source, ""));
            if same(server, share.trim_end_matches('/')) && holding.point == path {
                Ok(())
            } else {
                Err(format!("{} is mounted at {}", holding.source, holding.point.display()))
            }
        }
        "fuse.smbnetfs" => {
            let inside = path.strip_prefix(&holding.point).map_err(|error| error.to_string())?;
            let parts: Vec<&str> = inside.iter().filter_map(OsStr::to_str).collect();
            match parts[..] {
                [server, share] if same(server, share) => Ok(()),
                _ => Err(format!(
                    "the smbnetfs mount at {} shows this share at {}/{}/{}",
                    holding.point.display(),
                    holding.point.display(),
                    unc.server(),
                    unc.share()
                )),
            }
        }
        kind => Err(format!("{} there is a {kind} file system, not a mount of an SMB share", holding.point.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unc() -> UncPath {
        "\\\\fs1.ferry.lab\\vms".parse().expect("well formed")
    }

    const MOUNTS: &str = "22 1 8:1 / / rw - ext4 /dev/vda rw
30 22 0:41 / /srv/ferry/net rw,nosuid - fuse.smbnetfs smbnetfs rw,user_id=0
31 22 0:42 / /srv/ferry/k\\040x rw - cifs //FS1.ferry.lab/VMs rw
32 22 0:43 / /srv/ferry/other rw - cifs //fs2.ferry.lab/vms rw
";

    #[test]
    fn only_a_mount_of_this_share_is_adopted() {
        let mounts = parse_mounts(MOUNTS);
        for (path, word) in [
            ("/srv/ferry/net/fs1.ferry.lab/vms", None),
            ("/srv/ferry/k x", None),
            ("/srv/ferry/net/fs2.ferry.lab/vms", Some("fs1.ferry.lab")),
            ("/srv/ferry/net", Some("fs1.ferry.lab")),
            ("/srv/ferry/other", Some("fs2.ferry.lab")),
            ("/srv/ferry/k x/inside", Some("mounted at")),
            ("/srv/ferry/empty", Some("ext4")),
        ] {
            let outcome = judge_adoption(&unc(), Path::new(path), &mounts);
            match word {
                None => assert_eq!(outcome, Ok(()), "{path}"),
                Some(word) => assert!(outcome.as_ref().is_err_and(|error| error.contains(word)), "{path}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn the_clients_words_become_the_right_fault() {
        let password = ShareError::Password { unc: unc(), user: "ferry".into() };
        let dialect = ShareError::Dialect { unc: unc() };
        let gone = "do_connect: Connection to fs1 failed (Error NT_STATUS_CONNECTION_REFUSED)";
        for (text, fault) in [
            ("session setup failed: NT_STATUS_LOGON_FAILURE\n", password),
            ("Protocol negotiation to server fs1 (for a protocol between SMB3 and SMB3) failed: NT_STATUS_NOT_SUPPORTED", dialect),
            (gone, ShareError::Unreachable { unc: unc(), reason: gone.into() }),
        ] {
            assert_eq!(fault_of(text, &unc(), "ferry"), fault);
        }
    }

    #[test]
    fn words_are_quoted_and_line_breaks_refused() {
        assert_eq!(quoted("a\"b\\c"), Ok("\"a\\\"b\\\\c\"".to_owned()));
        assert!(quoted("a\nauth x").is_err());
        let credentials = ShareCredentials { user: "LAB\\ferry".into(), password: "pw".into() };
        assert_eq!(credentials_file(&credentials), "username=ferry\npassword=pw\ndomain=LAB\n");
    }
}
