//! Properties that the lab's hosts share with real hosts.

use ferry_lab::{
    lab::Lab,
    local::{self, FOLDER},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn a_hosts_own_disk_gets_full_and_is_there_again_after_a_boot() {
    let mut lab = Lab::up_with(2, 256).expect("a lab");
    let folder = lab.folder.clone();
    assert_eq!(local::attached(&folder).len(), 2, "each host has its own");
    let host = &lab.hosts[0];
    host.fill(3 << 20).expect("filled");
    let write = |mib: u32| {
        let (file, count) = (format!("of={FOLDER}/file-{mib}"), format!("count={mib}"));
        host.try_run(&["dd", "if=/dev/zero", &file, "bs=1M", &count, "conv=fsync"]).expect("run")
    };
    assert!(write(2).ok(), "there is room for it");
    let full = write(4);
    assert!(!full.ok() && full.err.contains("No space left"), "there is no room for it: {full:?}");
    let other = &lab.hosts[1];
    let kept = format!("{FOLDER}/file-2");
    assert!(!other.file(&kept).exists(), "another host has another disk");
    assert!(host.file(&kept).exists());

    kill(Pid::from_raw(host.init), Signal::SIGKILL).expect("killed");
    lab.boot_again(0).expect("it boots");
    let host = &lab.hosts[0];
    assert_eq!(std::fs::metadata(host.file(&kept)).expect("there").len(), 2 << 20);
    host.fill(100 << 20).expect("the filler can be made smaller");
    assert_eq!(local::attached(&folder).len(), 2);
    drop(lab);
    assert_eq!(local::attached(&folder), Vec::<std::path::PathBuf>::new(), "both are given back");
}
