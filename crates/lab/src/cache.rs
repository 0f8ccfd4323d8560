//! Files that are downloaded or built once: the guests' kernel and initramfs (for the Debian guest's disk, see
//! [`crate::debian`]). The cache is never relied on: missing files are created again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use crate::run::{checked, run};

/// Modules that the ticker needs, in loading order.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
];
const LAST_MODULE: &str = "virtio_net";
/// Additional modules for a Debian guest, if they exist and are not built in.
const ROOT_MODULES: [&str; 5] = ["crc16", "crc32c_generic", "mbcache", "jbd2", "ext4"];

/// A guest's kernel and initramfs.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the ticker as its init.
    pub initramfs: PathBuf,
}

/// The cache folder, outside of the repository.
pub fn folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    base.unwrap_or_else(|| "/var/cache".into()).join("ferry")
}

/// Returns the folder `name` of the cache, with what was built by `recipe`. If the folder is missing, incomplete, or of
/// another recipe, `build` creates it again. `what` describes it in a message on stderr.
///
/// # Errors
/// The build fails.
pub fn kept(
    name: &str,
    what: &str,
    recipe: &str,
    is_whole: impl Fn(&Path) -> bool,
    build: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let place = folder().join(name);
    if fs::read_to_string(place.join("recipe")).is_ok_and(|built| built == recipe) && is_whole(&place) {
        return Ok(place);
    }
    eprintln!("building {what}");
    let work = folder().join(format!("{name}-{}", uuid::Uuid::new_v4().simple()));
    fs::create_dir_all(&work).with_context(|| format!("Could not make {}", work.display()))?;
    let built = build(&work).and_then(|()| Ok(fs::write(work.join("recipe"), recipe)?));
    if let Err(error) = built {
        let _ = fs::remove_dir_all(&work);
        return Err(error);
    }
    // Several labs may do this at the same time: the last to rename wins, and all results are the same.
    let old = work.with_extension("old");
    let _ = fs::rename(&place, &old);
    let moved = fs::rename(&work, &place);
    for folder in [old, work].iter().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder)?;
    }
    ensure!(moved.is_ok() || is_whole(&place), "{} could not be made", place.display());
    Ok(place)
}

/// The machine's Debian release: guests use its kernel, and its mirror is known.
///
/// # Errors
/// The machine does not report its release.
pub fn release() -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("Could not read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release")?.trim_matches('"').to_owned())
}

/// The mirror from which apt gets the machine's release; it has other releases as well.
///
/// # Errors
/// apt knows no mirror.
pub fn mirror() -> anyhow::Result<String> {
    let release = release()?;
    let output = run("apt-get", &["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])?;
    let found = output.lines().find_map(|line| line.trim().split_once(' ').filter(|(name, _)| *name == release));
    match found {
        Some((_, uri)) => Ok(uri.to_owned()),
        None => bail!("apt knows no source of {release}"),
    }
}

/// The kernel, downloaded if missing, and an initramfs around `ticker`.
///
/// # Errors
/// It cannot be downloaded or packed.
pub fn boot(ticker: &Path, work: &Path) -> anyhow::Result<Boot> {
    let unpacked = kernel_files()?;
    let kernel = find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let root = work.join("initramfs");
    fs::create_dir_all(root.join("modules"))?;
    for folder in ["proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // Some releases build parts of virtio into the kernel: the modules listed here need not be loaded.
    let built_in = fs::read_to_string(find(&unpacked, |name| name == "modules.builtin")?)?;
    let mut order = String::new();
    for module in MODULES.iter().chain([&LAST_MODULE]).chain(&ROOT_MODULES) {
        let file = format!("{module}.ko");
        if built_in.lines().any(|line| line.ends_with(&format!("/{file}"))) {
            continue;
        }
        let source = match find(&unpacked, |name| name == file || name == format!("{file}.xz")) {
            Err(_) if ROOT_MODULES.contains(module) => continue,
            found => found?,
        };
        let place = root.join("modules").join(&file);
        if source.extension().is_some_and(|extension| extension == "xz") {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("xz -dc '{}' > '{}'", source.display(), place.display()));
            checked(command, Duration::from_secs(30))?;
        } else {
            fs::copy(&source, &place)?;
        }
        order += &format!("{file}\n");
    }
    fs::write(root.join("modules/order"), order)?;
    fs::copy(ticker, root.join("init")).with_context(|| format!("Could not copy {}", ticker.display()))?;
    let initramfs = work.join("initramfs.img");
    let mut command = Command::new("sh");
    let script = format!("cd '{}' && find . | cpio --quiet -o -H newc > '{}'", root.display(), initramfs.display());
    command.arg("-c").arg(script);
    checked(command, Duration::from_secs(60))?;
    let copy = work.join("vmlinuz");
    fs::copy(&kernel, &copy)?;
    Ok(Boot { kernel: copy, initramfs })
}

/// The unpacked kernel package.
fn kernel_files() -> anyhow::Result<PathBuf> {
    let cache = folder();
    let done = cache.join("kernel");
    if find(&done.join("boot"), |name| name.starts_with("vmlinuz-")).is_ok() {
        return Ok(done);
    }
    fs::create_dir_all(&cache).with_context(|| format!("Could not make {}", cache.display()))?;
    let work = cache.join(format!("download-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    eprintln!("downloading a kernel for the guests");
    let depends = run("apt-cache", &["depends", "linux-image-cloud-amd64"])?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-")))
        .context("The package linux-image-cloud-amd64 depends on no kernel")?;
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(&work);
    checked(command, Duration::from_secs(300))?;
    let file = find(&work, |name| name.ends_with(".deb"))?;
    run("dpkg-deb", &["-x".as_ref(), file.as_os_str(), work.join("root").as_os_str()])?;
    // Several labs may do this at the same time: the first to rename wins, and the others use its result.
    let _ = fs::rename(work.join("root"), &done);
    fs::remove_dir_all(&work)?;
    Ok(done)
}

/// The first file below `folder` whose name satisfies `is`.
fn find(folder: &Path, is: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("Could not read {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_str().is_some_and(&is) {
                return Ok(entry.path());
            }
        }
    }
    bail!("{} does not hold what was looked for", folder.display())
}
