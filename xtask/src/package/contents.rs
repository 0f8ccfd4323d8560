//! What is in which package: the one list, from which both formats are made.
//!
//! Scripts lie beside the files: `packaging/NAME/deb` and `packaging/NAME/rpm`.

/// A package, with one program of the same name.
pub(super) struct Package {
    pub(super) name: &'static str,
    /// The crate of its program.
    pub(super) krate: &'static str,
    /// The section of the manual that its pages are in.
    pub(super) section: u8,
    pub(super) summary: &'static str,
    /// Lines of no more than 79 characters.
    pub(super) description: &'static [&'static str],
    /// What it has besides program, manual, completions and licences.
    pub(super) files: &'static [File],
    /// What it needs besides the libraries of its program.
    pub(super) deb: Relations,
    pub(super) rpm: Relations,
}

/// Other packages, by their names in one family of distributions.
#[derive(Clone, Copy)]
pub(super) struct Relations {
    /// Without these it does nothing.
    pub(super) needs: &'static [&'static str],
    /// Hosts usually have these.
    pub(super) wants: &'static [&'static str],
    /// Some hosts have these.
    pub(super) suggests: &'static [&'static str],
}

/// A file as it is in `packaging/NAME`, readable by everybody.
pub(super) struct File {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// An administrator's: kept when it was changed.
    pub(super) config: bool,
}

const fn file(from: &'static str, to: &'static str) -> File {
    File { from, to, config: false }
}

const fn config(from: &'static str, to: &'static str) -> File {
    File { from, to, config: true }
}

const NOTHING: Relations = Relations { needs: &[], wants: &[], suggests: &[] };

pub(super) const PACKAGES: [Package; 3] = [
    Package {
        name: "ferry",
        krate: "ferry-cli",
        section: 1,
        summary: "command line of Ferry, which moves running VMs between hosts",
        description: &[
            "Ferry moves running VMs between hosts with libvirt and QEMU, with their disks",
            "or over shares, without stopping them. This is what administrators type.",
        ],
        files: &[],
        deb: NOTHING,
        rpm: NOTHING,
    },
    Package {
        name: "ferry-server",
        krate: "ferry-server",
        section: 8,
        summary: "control plane of Ferry, which moves running VMs between hosts",
        description: &[
            "Ferry moves running VMs between hosts with libvirt and QEMU, with their disks",
            "or over shares, without stopping them. This is the one server: REST API, jobs,",
            "inventory. It runs anywhere, and its hosts run ferry-agent.",
        ],
        files: &[
            file("ferry-server.service", "/usr/lib/systemd/system/ferry-server.service"),
            file("sysusers.conf", "/usr/lib/sysusers.d/ferry-server.conf"),
            file("tmpfiles.conf", "/usr/lib/tmpfiles.d/ferry-server.conf"),
            file("firewalld.xml", "/usr/lib/firewalld/services/ferry-server.xml"),
            config("server.toml", "/etc/ferry/server.toml"),
        ],
        deb: NOTHING,
        rpm: NOTHING,
    },
    Package {
        name: "ferry-agent",
        krate: "ferry-agent",
        section: 8,
        summary: "agent of Ferry, which moves running VMs between hosts",
        description: &[
            "Ferry moves running VMs between hosts with libvirt and QEMU, with their disks",
            "or over shares, without stopping them. This runs on each host, next to libvirt,",
            "observes it and moves the bytes.",
        ],
        files: &[
            file("ferry-agent.service", "/usr/lib/systemd/system/ferry-agent.service"),
            file("tmpfiles.conf", "/usr/lib/tmpfiles.d/ferry-agent.conf"),
            file("firewalld.xml", "/usr/lib/firewalld/services/ferry-agent.xml"),
            // No configuration file: its address must be chosen, and set-up writes it with that.
            file("agent.toml", "/usr/share/doc/ferry-agent/examples/agent.toml"),
        ],
        deb: Relations {
            needs: &["mount", "qemu-utils"],
            wants: &["cifs-utils", "libvirt-daemon-system", "qemu-system", "smbclient"],
            suggests: &["nfs-common"],
        },
        rpm: Relations {
            needs: &["qemu-img", "util-linux"],
            wants: &["cifs-utils", "libvirt-daemon-driver-qemu", "qemu-kvm", "samba-client"],
            suggests: &["nfs-utils"],
        },
    },
];
