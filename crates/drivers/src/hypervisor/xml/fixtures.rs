//! A definition for tests.

use ferry_core::id::VmId;

/// A VM with a file in every role, a disk that is not a file, and host devices.
pub(super) const XML: &str = r#"<domain type='qemu' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name><uuid>0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001</uuid>
  <metadata><x:odd xmlns:x='urn:x' keep='this'/></metadata>
  <memory unit='KiB'>524288</memory><vcpu placement='static'>2</vcpu>
  <os><type>hvm</type><kernel>/srv/ferry/vms/vmlinuz</kernel><nvram template='/usr/share/OVMF/VARS.fd'>/srv/ferry/vms/web01/vars.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='stop'/>
      <source file='/srv/ferry/vms/web01/a&amp;b.raw' index='1'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/d.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
    <disk type='block' device='disk'><source dev='/dev/sdq'/><target dev='vdb'/><shareable/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
    <hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01'/></source></hostdev>
    <tpm model='tpm-crb'><backend type='emulator'/></tpm>
    <serial type='file'><source path='/var/log/serial.log'/></serial>
  </devices></domain>"#;

/// The VM.
pub(super) fn vm() -> VmId {
    "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001".parse().expect("a UUID")
}
