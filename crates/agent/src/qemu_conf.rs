//! `shared_filesystems` of libvirt's qemu.conf: the folders that libvirt treats as shared.

use std::path::Path;

/// Whether a qemu.conf lists `root` (or a folder above it) in `shared_filesystems`.
pub fn knows_shared(conf: &str, root: &str) -> bool {
    shared_setting(conf)
        .is_some_and(|(_, _, list)| list.iter().any(|listed| Path::new(root).starts_with(Path::new(listed))))
}

/// The qemu.conf with `root` added to `shared_filesystems`; `None` if it is already there. Everything else stays
/// unchanged.
pub(crate) fn with_shared(conf: &str, root: &str) -> anyhow::Result<Option<String>> {
    anyhow::ensure!(!root.contains(['"', '\n']), "The share root {root:?} cannot be written into qemu.conf");
    let Some(line) = missing_line(conf, root) else { return Ok(None) };
    let Some((start, end, _)) = shared_setting(conf) else {
        let gap = if conf.is_empty() || conf.ends_with('\n') { "" } else { "\n" };
        return Ok(Some(format!("{conf}{gap}{line}\n")));
    };
    Ok(Some(format!("{}{line}{}", &conf[..start], &conf[end..])))
}

/// The setting that qemu.conf needs so that libvirt treats `path` as shared as well; `None` if it has it.
pub fn missing_line(conf: &str, path: &str) -> Option<String> {
    if knows_shared(conf, path) {
        return None;
    }
    let mut list = shared_setting(conf).map(|(_, _, list)| list).unwrap_or_default();
    list.push(path.to_owned());
    let quoted: Vec<String> = list.iter().map(|path| format!("\"{path}\"")).collect();
    Some(format!("shared_filesystems = [ {} ]", quoted.join(", ")))
}

/// The setting's first and last byte and its list. Ignores comments.
fn shared_setting(conf: &str) -> Option<(usize, usize, Vec<String>)> {
    let mut at = 0;
    for line in conf.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let Some(rest) = line.trim_start().strip_prefix("shared_filesystems") else { continue };
        if !rest.trim_start().starts_with('=') {
            continue;
        }
        let open = start + conf[start..].find('[')?;
        let close = open + conf[open..].find(']')?;
        // Every second piece between quotes is an entry, lines with comments left out.
        let inner: String =
            conf[open + 1..close].lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
        let list = inner.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        return Some((start, close + 1, list));
    }
    None
}
