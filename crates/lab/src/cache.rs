//! What is downloaded or built once: the guests' kernel and their first file system (the Debian guest's disk:
//! [`crate::debian`]). Never relied on: it is made again when it is missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use crate::run::{checked, run};

/// Modules that the ticker needs, in the order in which they must be loaded.
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
/// Modules that a Debian guest needs besides, where they are there and not built in.
const ROOT_MODULES: [&str; 5] = ["crc16", "crc32c_generic", "mbcache", "jbd2", "ext4"];

/// A guest's kernel and first file system.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the ticker as its init.
    pub initramfs: PathBuf,
}

/// The folder, outside the repository.
pub fn folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    base.unwrap_or_else(|| "/var/cache".into()).join("ferry")
}

/// What was built by `recipe` is kept in a folder `name` of the cache: gives that folder, where `build` makes it anew if it
/// is not there, not whole, or of another recipe. `what` says on stderr what is built.
///
/// # Errors
/// When it cannot be built.
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
    // Several labs may do this at once: the last to rename wins, and all are the same.
    let old = work.with_extension("old");
    let _ = fs::rename(&place, &old);
    let moved = fs::rename(&work, &place);
    for folder in [old, work].iter().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder)?;
    }
    ensure!(moved.is_ok() || is_whole(&place), "{} could not be made", place.display());
    Ok(place)
}

/// The machine's release: its kernel is the guests', and its mirror is known.
///
/// # Errors
/// When the machine does not say.
pub fn release() -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("Could not read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release")?.trim_matches('"').to_owned())
}

/// From where apt takes the machine's release; others lie beside it.
///
/// # Errors
/// When apt knows no such place.
pub fn mirror() -> anyhow::Result<String> {
    let release = release()?;
    let said = run("apt-get", &["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])?;
    let found = said.lines().find_map(|line| line.trim().split_once(' ').filter(|(name, _)| *name == release));
    match found {
        Some((_, uri)) => Ok(uri.to_owned()),
        None => bail!("apt knows no source of {release}"),
    }
}

/// The kernel, downloaded if it is not there, and an initramfs around `ticker`.
///
/// # Errors
/// When it cannot be downloaded or packed.
pub fn boot(ticker: &Path, work: &Path) -> anyhow::Result<Boot> {
    let unpacked = kernel_files()?;
    let kernel = find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let root = work.join("initramfs");
    fs::create_dir_all(root.join("modules"))?;
    for folder in ["proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // Some releases build parts of virtio into the kernel: what is listed here needs no loading.
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
    // Several labs may do this at once: the first to rename wins, and the others use its.
    let _ = fs::rename(work.join("root"), &done);
    fs::remove_dir_all(&work)?;
    Ok(done)
}

/// The first file below `folder` whose name `is` takes.
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
