//! The libvirt hook that vetoes a start of a held VM (`hold.rs`).

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::Context as _;
use ferry_core::error::chain;

use crate::config::Config;

pub(crate) const VETO_MARKER: &str = "# ferry: veto a second start of a VM that is being moved";

/// The hook's path: libvirt runs `hooks/qemu`, and in addition every script in `hooks/qemu.d`.
pub(crate) fn path_of(config: &Config) -> PathBuf {
    config.hooks_dir.join("qemu.d").join("ferry")
}

/// Whether the hook is installed, executable, and refers to this agent's holds.
pub fn is_installed(config: &Config) -> bool {
    let path = path_of(config);
    let executable = fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o100 != 0);
    executable && fs::read_to_string(&path).is_ok_and(|text| text == script(config))
}

/// Updates a hook that an earlier version wrote; does nothing if there is none, or a foreign one. libvirt needs no
/// restart for it.
pub fn refresh(config: &Config) {
    let path = path_of(config);
    let is_ours = fs::read_to_string(&path).is_ok_and(|text| text.contains(VETO_MARKER));
    if !is_ours || is_installed(config) {
        return;
    }
    match install(config) {
        Ok(path) => tracing::info!(hook = %path.display(), "The hook of an earlier version was written anew"),
        Err(error) => tracing::warn!(error = %chain(&*error), "The hook of an earlier version stays"),
    }
}

pub(crate) fn install(config: &Config) -> anyhow::Result<PathBuf> {
    let path = path_of(config);
    let folder = path.parent().expect("it lies in qemu.d");
    fs::create_dir_all(folder).with_context(|| format!("Could not make {}", folder.display()))?;
    fs::write(&path, script(config)).with_context(|| format!("Could not write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// libvirt passes the domain's XML on stdin; the script searches it for the domain's UUID, since its argument is the
/// name.
pub(crate) fn script(config: &Config) -> String {
    format!(
        r#"#!/bin/sh
{VETO_MARKER}
# libvirt calls: NAME prepare begin -, with the definition on stdin; a non-zero end vetoes the start.
# What cannot be told vetoes, too: a VM that is held may be running on another host.
[ "$2" = prepare ] || exit 0
holds='{holds}'
if ! ls "$holds" >/dev/null 2>&1; then
    echo "Ferry cannot tell whether VM $1 is held: $holds is not there, or cannot be read. Mount its file system, or run" \
        "'ferry-agent setup'; where Ferry is not used any more, remove $0" >&2
    exit 1
fi
uuid=$(sed -n 's|.*<uuid>\([0-9a-fA-F-]*\)</uuid>.*|\1|p' | head -n 1 | tr 'A-F' 'a-f')
if [ -z "$uuid" ]; then
    echo "Ferry cannot tell whether VM $1 is held: its definition shows no UUID" >&2
    exit 1
fi
if [ -e "$holds/$uuid" ]; then
    echo "VM $1 is held by Ferry: $(cat "$holds/$uuid" 2>/dev/null)" >&2
    exit 1
fi
exit 0
"#,
        holds = config.holds_dir().display()
    )
}
