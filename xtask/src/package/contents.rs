//! The content of each package: one list for both formats.
//!
//! Scripts are in separate folders: `packaging/NAME/deb` and `packaging/NAME/rpm`.

/// A package, with one program of the same name.
pub(super) struct Package {
    pub(super) name: &'static str,
    /// The crate of its program.
    pub(super) krate: &'static str,
    /// The manual section of its pages.
    pub(super) section: u8,
    pub(super) summary: &'static str,
    /// Lines of at most 79 characters.
    pub(super) description: &'static [&'static str],
    /// Its files besides program, manual, completions and licences.
    pub(super) files: &'static [File],
    /// Its dependencies besides the libraries of its program.
    pub(super) deb: Relations,
    pub(super) rpm: Relations,
}

/// Dependencies on other packages, by their names in one family of distributions.
#[derive(Clone, Copy)]
pub(super) struct Relations {
    /// Required packages.
    pub(super) needs: &'static [&'static str],
    /// Packages that most hosts have.
    pub(super) wants: &'static [&'static str],
    /// Packages that some hosts have.
    pub(super) suggests: &'static [&'static str],
}

/// A file, unchanged from `packaging/NAME`, readable by all users.
pub(super) struct File {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Whether it is a configuration file: kept if the administrator changed it.
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
            // Not installed as a configuration file: its address must be chosen, and setup writes the file with that
            // address.
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
