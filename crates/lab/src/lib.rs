//! Real hosts on one machine: namespaces, libvirt, QEMU, Samba, guests.
