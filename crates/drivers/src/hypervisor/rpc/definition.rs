//! Restricts what a domain definition from another host may request on this one.
//!
//! libvirtd acts on a definition as root: it changes the owner of each file it names, runs the emulator and scripts it
//! names, and obeys its security labels. Root of the source host wrote it, so it is checked before libvirtd sees it.
//! The rule is default-deny: whatever looks like a path must lie below the VM's roots, with the few exceptions below.
//! The XML must mean the same to libvirt's parser and to Ferry's: no DTD, no declared encoding, no namespaces.

use std::path::{Component, Path, PathBuf};

use ferry_core::id::VmId;
use roxmltree::{Document, Node};
use thiserror::Error;
use uuid::Uuid;

/// Directories of firmware: QEMU reads it, or libvirtd copies it into new UEFI variables.
const FIRMWARE_ROOTS: [&str; 2] = ["/usr/share", "/usr/lib"];
/// Directories of emulators.
const EMULATOR_ROOTS: [&str; 3] = ["/usr/bin", "/usr/libexec", "/usr/local/bin"];
/// Where libvirt itself puts a VM's sockets, console logs and UEFI variables.
const LIBVIRT_ROOTS: [&str; 4] = [
    "/var/lib/libvirt/qemu/nvram",
    "/var/lib/libvirt/qemu/channel",
    "/run/libvirt/qemu/channel",
    "/var/log/libvirt/qemu",
];
/// Sources of randomness that a guest may read.
const RANDOM_DEVICES: [&str; 3] = ["/dev/urandom", "/dev/random", "/dev/hwrng"];
/// Elements that give the guest access to this host, or run a chosen program on it.
const REFUSED_ELEMENTS: [&str; 5] = ["hostdev", "filesystem", "script", "downscript", "binary"];
/// Attributes that libvirt opens as paths, even if they are relative.
const PATH_ATTRIBUTES: [&str; 9] =
    ["file", "path", "dir", "template", "socket", "rendernode", "tap", "vhost", "logFile"];
/// Elements whose text libvirt opens as a path, even if it is relative.
const PATH_ELEMENTS: [&str; 9] =
    ["emulator", "loader", "nvram", "kernel", "initrd", "dtb", "table", "path", "database"];
/// Elements with free text, which never becomes a path on this host.
const FREE_TEXT_ELEMENTS: [&str; 3] = ["cmdline", "entry", "partition"];

/// Why a definition is refused.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DefinitionError {
    /// Not XML, or with a DTD.
    #[error("The definition is not plain XML")]
    Xml(#[source] roxmltree::Error),
    /// It declares an encoding, so two parsers might read two different texts.
    #[error("The definition declares an encoding")]
    Encoding,
    /// It has another root element.
    #[error("Expected the XML of a {expected}, got {found:?}")]
    Root {
        /// The expected element.
        expected: &'static str,
        /// The root element found.
        found: String,
    },
    /// It belongs to another VM.
    #[error("The definition's {field} is {found:?}, the session is for {expected:?}")]
    OtherVm {
        /// `name` or `uuid`.
        field: &'static str,
        /// The session's value.
        expected: String,
        /// The definition's value; empty if it has none or several.
        found: String,
    },
    /// It names a path outside the roots.
    #[error("The definition's {element} names {path:?}, which is outside what this VM may use here")]
    Path {
        /// The element that names it.
        element: String,
        /// The path.
        path: String,
    },
    /// It contains something that no plain move needs.
    #[error("The definition has {what}, which is not accepted from another host")]
    Content {
        /// The element or attribute.
        what: String,
    },
}

/// The VM of a definition from another host, and what the definition may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionPolicy {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Every file of the VM must lie below one of these. Absolute, without `..`.
    pub roots: Vec<PathBuf>,
}

/// Checks a definition against the session it came through.
///
/// # Errors
/// The first problem found.
pub fn check_definition(xml: &str, policy: &DefinitionPolicy) -> Result<(), DefinitionError> {
    let document = parse(xml)?;
    let root = document.root_element();
    if root.tag_name().name() != "domain" {
        return Err(DefinitionError::Root { expected: "domain", found: root.tag_name().name().to_owned() });
    }
    check_domain(root, policy)
}

/// Checks a migration cookie: its VM and, for a VM that will stay defined, the definition that it carries.
///
/// # Errors
/// The first problem found.
pub fn check_cookie(cookie: &[u8], policy: &DefinitionPolicy) -> Result<(), DefinitionError> {
    let text = cookie.strip_suffix(b"\0").unwrap_or(cookie);
    if text.is_empty() {
        return Ok(());
    }
    let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0')).ok_or(DefinitionError::Encoding)?;
    let document = parse(text)?;
    let root = document.root_element();
    if root.tag_name().name() != "qemu-migration" {
        return Err(DefinitionError::Root { expected: "migration cookie", found: root.tag_name().name().to_owned() });
    }
    check_identity(root, policy)?;
    document
        .descendants()
        .filter(|node| node.is_element() && node.tag_name().name() == "domain")
        .try_for_each(|domain| check_domain(domain, policy))
}

fn parse(xml: &str) -> Result<Document<'_>, DefinitionError> {
    if xml.trim_start_matches('\u{feff}').trim_start().starts_with("<?xml") {
        return Err(DefinitionError::Encoding);
    }
    Document::parse(xml).map_err(DefinitionError::Xml)
}

fn check_domain(domain: Node<'_, '_>, policy: &DefinitionPolicy) -> Result<(), DefinitionError> {
    check_identity(domain, policy)?;
    for child in domain.children().filter(Node::is_element) {
        match child.tag_name().name() {
            // Notes of management programs, which libvirt keeps and never interprets.
            "metadata" | "description" | "title" => {}
            "seclabel" => check_domain_label(child)?,
            _ => child.descendants().filter(Node::is_element).try_for_each(|element| check_element(element, policy))?,
        }
    }
    check_namespace(domain)
}

/// Checks that `node` has exactly one `name` and one `uuid`, those of the session.
fn check_identity(node: Node<'_, '_>, policy: &DefinitionPolicy) -> Result<(), DefinitionError> {
    let only = |field: &str| {
        let mut found = node.children().filter(|child| child.is_element() && child.tag_name().name() == field);
        let text = found.next().and_then(|child| child.text()).unwrap_or_default();
        if found.next().is_some() { "" } else { text }
    };
    let name = only("name");
    if name != policy.name {
        return Err(DefinitionError::OtherVm { field: "name", expected: policy.name.clone(), found: name.to_owned() });
    }
    let uuid = only("uuid");
    if Uuid::parse_str(uuid.trim()).map(VmId) != Ok(policy.vm) {
        return Err(DefinitionError::OtherVm {
            field: "uuid",
            expected: policy.vm.to_string(),
            found: uuid.to_owned(),
        });
    }
    Ok(())
}

/// A label of the whole domain may only be the one that libvirt chooses: any other can make QEMU run as root.
fn check_domain_label(label: Node<'_, '_>) -> Result<(), DefinitionError> {
    let chosen_by_libvirt = label.attribute("type") == Some("dynamic")
        && !label.children().any(|child| child.is_element() && child.tag_name().name() == "baselabel");
    if chosen_by_libvirt {
        return Ok(());
    }
    Err(DefinitionError::Content {
        what: format!("a security label of type {:?}", label.attribute("type").unwrap_or_default()),
    })
}

fn check_namespace(element: Node<'_, '_>) -> Result<(), DefinitionError> {
    let foreign = |namespace: Option<&str>| namespace.is_some_and(|uri| !uri.is_empty());
    if foreign(element.tag_name().namespace()) {
        return Err(DefinitionError::Content {
            what: format!("the element {} of another namespace", element.tag_name().name()),
        });
    }
    Ok(())
}

fn check_element(element: Node<'_, '_>, policy: &DefinitionPolicy) -> Result<(), DefinitionError> {
    check_namespace(element)?;
    let name = element.tag_name().name();
    if REFUSED_ELEMENTS.contains(&name) {
        return Err(DefinitionError::Content { what: format!("a {name} element") });
    }
    let kind = element.attribute("type");
    let is_storage = matches!(name, "disk" | "backingStore" | "mirror" | "dataStore");
    if is_storage && kind.is_some_and(|kind| kind != "file") {
        return Err(DefinitionError::Content { what: format!("a {name} of type {:?}", kind.unwrap_or_default()) });
    }
    if name == "interface" && matches!(kind, Some("hostdev" | "vdpa" | "vhostuser")) {
        return Err(DefinitionError::Content { what: format!("an interface of type {:?}", kind.unwrap_or_default()) });
    }
    for attribute in element.attributes() {
        // A disk of type file ignores `dev`, so only what looks like a path matters there.
        let is_path = PATH_ATTRIBUTES.contains(&attribute.name()) || attribute.value().starts_with('/');
        if is_path && !may_use(element, attribute.name(), attribute.value(), policy) {
            return Err(DefinitionError::Path {
                element: format!("{name}@{}", attribute.name()),
                path: attribute.value().to_owned(),
            });
        }
    }
    for text in element.children().filter(Node::is_text).filter_map(|node| node.text()) {
        let text = text.trim();
        let is_path = PATH_ELEMENTS.contains(&name) && !text.is_empty() || text.starts_with('/');
        if is_path && !FREE_TEXT_ELEMENTS.contains(&name) && !may_use(element, "", text, policy) {
            return Err(DefinitionError::Path { element: name.to_owned(), path: text.to_owned() });
        }
    }
    Ok(())
}

/// Whether `element` may name `path`, in its attribute `attribute` or, if that is empty, in its text.
fn may_use(element: Node<'_, '_>, attribute: &str, path: &str, policy: &DefinitionPolicy) -> bool {
    let file = Path::new(path);
    let plain = file.is_absolute() && !file.components().any(|part| part == Component::ParentDir);
    if !plain {
        return false;
    }
    let below = |roots: &[&str]| roots.iter().any(|root| file.starts_with(root));
    let below_roots = policy.roots.iter().any(|root| file.starts_with(root));
    match (element.tag_name().name(), attribute) {
        ("emulator", _) => {
            let named = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            below(&EMULATOR_ROOTS) && (named.starts_with("qemu-") || named == "kvm")
        }
        ("loader", "") | ("nvram", "template") => below(&FIRMWARE_ROOTS) || below_roots,
        ("backend", "") => RANDOM_DEVICES.contains(&path),
        // The host's side of a pty is reported by libvirt, and not a request.
        ("console" | "serial" | "parallel" | "channel", "tty") => true,
        ("source", "path") if element.parent_element().and_then(|parent| parent.attribute("type")) == Some("pty") => {
            true
        }
        _ => below(&LIBVIRT_ROOTS) || below_roots,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "5b6b6d0e-35a4-4c5d-9f1b-0d5a3c1d2e3f";

    fn policy() -> DefinitionPolicy {
        DefinitionPolicy { vm: VM.parse().expect("a UUID"), name: "web01".into(), roots: vec!["/srv/ferry/vms".into()] }
    }

    fn definition(devices: &str) -> String {
        format!(
            "<domain type='kvm' id='3'>\n  <name>web01</name>\n  <uuid>{VM}</uuid>\n\
             <metadata><x:y xmlns:x='urn:x' path='/etc/shadow'/></metadata>\n\
             <resource><partition>/machine</partition></resource>\n\
             <os><type arch='x86_64'>hvm</type><loader type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>\
             <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram></os>\n\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\n\
             <disk type='file' device='disk'><source file='/srv/ferry/vms/web01.qcow2' index='1'/>\
             <backingStore type='file'><format type='raw'/><source file='/srv/ferry/vms/base.raw'/>\
             <backingStore/></backingStore><target dev='vda'/></disk>\n\
             <disk type='file' device='cdrom'><target dev='sda'/></disk>\n\
             <serial type='pty'><source path='/dev/pts/3'/><target port='0'/></serial>\n\
             <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>\n\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n\
             <interface type='bridge'><source bridge='br0'/></interface>{devices}</devices>\n\
             <seclabel type='dynamic' model='dac' relabel='yes'/></domain>"
        )
    }

    #[test]
    fn an_ordinary_definition_passes() {
        assert_eq!(check_definition(&definition(""), &policy()), Ok(()));
    }

    #[test]
    fn another_vm_is_refused() {
        let text = definition("");
        for (from, to) in [
            ("<name>web01</name>", "<name>web02</name>"),
            ("<name>web01</name>", "<name>web01</name><name>web02</name>"),
            (VM, "5b6b6d0e-35a4-4c5d-9f1b-0d5a3c1d2e30"),
            ("<uuid>", "<uuid/><uuid>"),
        ] {
            let result = check_definition(&text.replacen(from, to, 1), &policy());
            assert!(matches!(result, Err(DefinitionError::OtherVm { .. })), "{to}: {result:?}");
        }
    }

    #[test]
    fn paths_outside_the_roots_are_refused() {
        for path in
            ["/etc/shadow", "/srv/ferry/vms/../../../etc/shadow", "etc/shadow", "/srv/ferry/vms2/x", "", "/srv/ferry"]
        {
            let devices = format!("<disk type='file'><source file='{path}'/></disk>");
            let result = check_definition(&definition(&devices), &policy());
            assert!(matches!(result, Err(DefinitionError::Path { .. })), "{path}: {result:?}");
        }
        for devices in [
            "<emulator>/srv/ferry/vms/evil</emulator>",
            "<emulator>/srv/ferry/vms/qemu-system-x86_64</emulator>",
            "<emulator>/usr/bin/env</emulator>",
            "<serial type='file'><source path='/etc/cron.d/x'/></serial>",
            "<serial type='dev'><source path='/dev/pts/0'/></serial>",
            "<channel type='unix'><source mode='connect' path='/var/lib/libvirt/qemu/domain-1-a/monitor.sock'/></channel>",
            "<console type='pty'><log file='/root/.bashrc'/></console>",
            "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            "<disk type='file'><source file='/srv/ferry/vms/a'/><backingStore type='file'><source file='/etc/shadow'/></backingStore></disk>",
            "<graphics type='spice'><gl rendernode='/dev/dri/renderD128'/></graphics>",
            "<rng><backend model='random'>/dev/sda</backend></rng>",
            "<memory model='nvdimm'><source><path>/dev/sda</path></source></memory>",
        ] {
            let result = check_definition(&definition(devices), &policy());
            assert!(matches!(result, Err(DefinitionError::Path { .. })), "{devices}: {result:?}");
        }
    }

    #[test]
    fn content_that_gives_the_source_power_here_is_refused() {
        for devices in [
            "<hostdev mode='subsystem' type='usb'/>",
            "<filesystem type='mount'><source dir='/srv/ferry/vms/x'/></filesystem>",
            "<interface type='ethernet'><script path='/srv/ferry/vms/x.sh'/></interface>",
            "<interface type='hostdev'/>",
            "<disk type='block'><source dev='/dev/sda'/></disk>",
            "<disk type='volume'><source pool='default' volume='x'/></disk>",
            "<disk type='network'><source protocol='nbd' name='x'/></disk>",
            "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-x'/></q:commandline>",
        ] {
            let result = check_definition(&definition(devices), &policy());
            assert!(matches!(result, Err(DefinitionError::Content { .. })), "{devices}: {result:?}");
        }
        for label in [
            "<seclabel type='static' model='dac'><label>root:root</label></seclabel>",
            "<seclabel type='none' model='dac'/>",
            "<seclabel type='dynamic' model='selinux'><baselabel>x</baselabel></seclabel>",
        ] {
            let text = definition("").replace("</domain>", &format!("{label}</domain>"));
            let result = check_definition(&text, &policy());
            assert!(matches!(result, Err(DefinitionError::Content { .. })), "{label}: {result:?}");
        }
    }

    #[test]
    fn xml_that_two_parsers_may_read_differently_is_refused() {
        let text = definition("");
        for prefix in ["<?xml version='1.0' encoding='UTF-7'?>", " <?xml version='1.0'?>"] {
            let result = check_definition(&format!("{prefix}{text}"), &policy());
            assert_eq!(result, Err(DefinitionError::Encoding), "{prefix}");
        }
        let entity = format!("<!DOCTYPE d [<!ENTITY n 'x'>]>{text}");
        assert!(matches!(check_definition(&entity, &policy()), Err(DefinitionError::Xml(_))));
        let namespaced = text.replace("<domain ", "<domain xmlns='urn:x' ");
        assert!(check_definition(&namespaced, &policy()).is_err());
    }

    #[test]
    fn a_cookie_is_checked_with_the_definition_it_carries() {
        let cookie = |domain: &str| {
            format!(
                "<qemu-migration><name>web01</name><uuid>{VM}</uuid><hostname>kvm1</hostname>{domain}</qemu-migration>\0"
            )
        };
        assert_eq!(check_cookie(b"", &policy()), Ok(()));
        assert_eq!(check_cookie(cookie("").as_bytes(), &policy()), Ok(()));
        assert_eq!(check_cookie(cookie(&definition("")).as_bytes(), &policy()), Ok(()));
        let evil = definition("<disk type='file'><source file='/etc/shadow'/></disk>");
        assert!(matches!(check_cookie(cookie(&evil).as_bytes(), &policy()), Err(DefinitionError::Path { .. })));
        let other = cookie("").replace("web01", "web02");
        assert!(matches!(check_cookie(other.as_bytes(), &policy()), Err(DefinitionError::OtherVm { .. })));
        assert!(check_cookie(b"<domain/>", &policy()).is_err());
        assert!(check_cookie(b"\xff", &policy()).is_err());
    }
}
