//! libvirt's modular daemons on stock hosts, as on distributions that use them: a unit and sockets for each daemon, and
//! no libvirtd. Debian does not package them: they are provided from outside.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::machine::Machine;
use crate::host::MODULAR_CLIENT_CONF;

/// Replaces a machine's libvirtd. `folder` contains the daemons, their units in `units`, and virtqemud's AppArmor
/// profile in `apparmor`.
///
/// # Errors
/// What could not be copied to the machine, or the machine's message.
pub(super) fn install(machine: &Machine, folder: &Path) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for (below, place) in [("", "/usr/sbin/"), ("units", "/usr/lib/systemd/system/"), ("apparmor", "/etc/apparmor.d/")]
    {
        let folder = folder.join(below);
        for entry in fs::read_dir(&folder).with_context(|| format!("Could not read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_file() {
                let given = machine.give(&path)?;
                machine.run(&format!("cp {given} {place}"))?;
                sockets.extend(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
            }
        }
    }
    sockets.retain(|name| name.ends_with("d.socket"));
    machine.run(&format!(
        "apparmor_parser -r /etc/apparmor.d/usr.sbin.virtqemud && \
         printf '{}' >/etc/libvirt/libvirt.conf && \
         systemctl disable -q --now libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service && \
         systemctl daemon-reload && systemctl enable -q --now {} && virsh -q list",
        MODULAR_CLIENT_CONF.replace('\n', "\\n"),
        sockets.join(" ")
    ))?;
    Ok(())
}
