//! Reads libvirt's capabilities of a host.

use roxmltree::Document;

use super::node::{child, children};

/// The host's UUID in libvirt's capabilities.
pub fn host_uuid(capabilities: &str) -> Option<String> {
    let document = Document::parse(capabilities).ok()?;
    let host = child(document.root_element(), "host")?;
    child(host, "uuid")?.text().map(str::to_owned)
}

/// User and group ids that QEMU runs as by default, in libvirt's capabilities: `<baselabel type='qemu'>+64055:+104`.
pub fn process_owner(capabilities: &str) -> Option<(u32, u32)> {
    let document = Document::parse(capabilities).ok()?;
    let host = child(document.root_element(), "host")?;
    let dac =
        children(host, "secmodel").find(|model| child(*model, "model").and_then(|name| name.text()) == Some("dac"))?;
    let (user, group) = child(dac, "baselabel")?.text()?.trim().split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(user)?, number(group)?))
}

/// The security drivers in libvirt's capabilities: each `<secmodel>` except `dac`, which is ordinary users and modes,
/// and `none`.
pub fn confined_by(capabilities: &str) -> Vec<String> {
    let Ok(document) = Document::parse(capabilities) else { return Vec::new() };
    let Some(host) = child(document.root_element(), "host") else { return Vec::new() };
    let models = children(host, "secmodel").filter_map(|model| child(model, "model")?.text());
    models.filter(|model| !["dac", "none"].contains(model)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_uuid_is_read_from_capabilities() {
        let xml = "<capabilities><host><uuid>abc</uuid></host><guest/></capabilities>";
        assert_eq!(host_uuid(xml).as_deref(), Some("abc"));
        assert_eq!(host_uuid("<capabilities/>"), None);
    }

    #[test]
    fn the_owner_of_processes_is_read_from_capabilities() {
        let xml = "<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>dac</model>\
                   <baselabel type='kvm'>+64055:+104</baselabel></secmodel></host></capabilities>";
        assert_eq!(process_owner(xml), Some((64055, 104)));
        assert_eq!(process_owner("<capabilities><host/></capabilities>"), None);
    }

    #[test]
    fn what_confines_vms_is_read_from_capabilities() {
        let with = |model: &str| {
            format!(
                "<capabilities><host><secmodel><model>{model}</model><doi>0</doi></secmodel><secmodel><model>dac</model>\
                 <baselabel type='kvm'>+64055:+104</baselabel></secmodel></host></capabilities>"
            )
        };
        assert_eq!(confined_by(&with("apparmor")), ["apparmor"]);
        assert_eq!(confined_by(&with("none")), [""; 0]);
        assert_eq!(confined_by("<capabilities/>"), [""; 0]);
    }
}
