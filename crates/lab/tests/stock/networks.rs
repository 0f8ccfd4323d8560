//! VMs whose definition names a libvirt network and storage pool instead of a bridge and a file.

use std::{fs, path::Path};

use ferry_lab::{
    guest::of_pool_and_network,
    stock::{
        machine::Machine,
        site::{StockSite, small_ticker},
    },
};

use crate::verified;

/// Gives a machine the network `lan`, which connects its VMs to its bridge, and the pool `vms` in a folder. libvirt's
/// AppArmor helper does not resolve pools: wherever a VM is started, QEMU is denied the files of their volumes unless
/// the administrator allows the folder.
fn add_network_and_pool(machine: &Machine, folder: &Path) {
    let xml = "<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>";
    fs::write(machine.folder.join("lan.xml"), xml).expect("written");
    machine.run("virsh -q net-define /lab/lan.xml && virsh -q net-start lan").expect("a network");
    let folder = folder.display();
    machine.run(&format!("virsh -q pool-create-as vms dir --target {folder}")).expect("a pool");
    let rule = "/etc/apparmor.d/abstractions/libvirt-qemu.d/pools";
    machine.run(&format!("echo '  \"{folder}/*\" rwk,' >{rule}")).expect("allowed");
}

/// Starts a guest on stock1, and leaves it there.
pub(crate) fn a_vm_of_a_network_and_a_storage_pool_moves_there_and_back(site: &StockSite) {
    let in_network_and_pool = |definition: String, folder: &Path| {
        for machine in &site.machines {
            add_network_and_pool(machine, folder);
        }
        of_pool_and_network(&definition, &folder.join("disk.raw"))
    };
    site.start_changed_guest(&small_ticker("pooled", 102), 0, in_network_and_pool).expect("started");
    for to in ["stock2", "stock1"] {
        site.migrate("pooled", to, &[]).expect("it moves");
        verified(site, "pooled");
    }
}
