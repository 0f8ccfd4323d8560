//! Shares mounted by the kernel's clients: servers that go down, passwords that change, all versions of NFS.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use ferry_core::{
    api::problem::Problem,
    finding::{Finding, FindingId, any_blocks},
};
use ferry_lab::{
    run::wait_for,
    samba::{PASSWORD, USER},
    stock::{
        machine::Machine,
        site::{StockSite, small_ticker},
    },
};

use crate::{against, verified, wait_for_finding};

/// How long a file server may be down without ending a VM: a failover.
const FAILOVER: Duration = Duration::from_secs(60);
/// How long Ferry may take to notice a change of a share's state.
const NOTICED_WITHIN: Duration = Duration::from_secs(120);
/// Time limit of the drivers' NFS tests.
const NFS_WITHIN: Duration = Duration::from_secs(400);

/// Waits for a finding of this kind against the guest's move to the other machine.
fn noticed(site: &StockSite, id: FindingId) -> Finding {
    wait_for_finding(site, id, true, NOTICED_WITHIN).expect("it was waited for")
}

/// Waits until there are no findings against the move.
fn wait_until_free(site: &StockSite) {
    let free =
        wait_for("nothing stands against the move", NOTICED_WITHIN, || (!any_blocks(&against(site))).then_some(()));
    free.unwrap_or_else(|error| panic!("{error:#}: {:#?}", against(site)));
}

/// Starts a guest on stock1, and leaves it there.
pub(crate) fn vms_outlive_their_file_servers_and_ferry_says_what_is_wrong_with_them(site: &StockSite) {
    let files = &site.ferry.files;
    site.ferry.must(&["share", "add", "vms", &files.unc()]).expect("added");
    let wrong = site.ferry.password_file("not the password").expect("written");
    let line = ["--json", "share", "attach", "vms", "--host", "stock1", "--user", USER, "--password-file", &wrong];
    let output = site.ferry.ferry(&line).expect("it ends");
    let problem: Problem = serde_json::from_str(output.out.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let ids: Vec<FindingId> = problem.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, [FindingId::SharePassword], "{problem:#?}");
    site.attach_smb_share("vms", PASSWORD).expect("mounted");
    site.start_guest(&small_ticker("ticker", 101), 0).expect("a guest");
    wait_until_free(site);

    // A failover that takes a minute.
    files.stop().expect("stopped");
    let stopped = Instant::now();
    let finding = noticed(site, FindingId::ShareUnreachable);
    assert!(
        finding.message.to_string().contains("cannot use share vms")
            && finding.fix.to_string().contains("fs1.ferry.lab"),
        "{finding:#?}"
    );
    let both = || against(site).iter().filter(|finding| finding.id == FindingId::ShareUnreachable).count() == 2;
    wait_for("it is said once for each host", NOTICED_WITHIN, || both().then_some(()))
        .expect("no finding for each file");
    wait_for("the failover takes its time", FAILOVER * 2, || (stopped.elapsed() > FAILOVER).then_some(()))
        .expect("time");
    files.start_daemon(&site.ferry.lab).expect("it serves again");
    verified(site, "ticker");
    wait_until_free(site);

    // The password changes; hosts notice that when they must log in again.
    files.set_password("another password").expect("changed");
    files.stop().expect("stopped");
    files.start_daemon(&site.ferry.lab).expect("it serves again");
    let finding = noticed(site, FindingId::SharePassword);
    // The steps of the fix, in order: first the old password again, …
    assert!(
        finding.fix.to_string().starts_with("Make the file server accept the password of the mount again"),
        "{finding:#?}"
    );
    files.set_password(PASSWORD).expect("changed back");
    verified(site, "ticker");
    wait_until_free(site);
    // … then, host by host: move the VMs away, detach the share, and attach it with the new password.
    files.set_password("another password").expect("changed");
    for (host, away) in [("stock2", None), ("stock1", Some("stock2"))] {
        if let Some(away) = away {
            site.migrate("ticker", away, &[]).expect("it moves");
        }
        let password = site.ferry.password_file("another password").expect("written");
        site.ferry.must(&["share", "detach", "vms", "--host", host]).expect("detached");
        site.ferry
            .must(&["share", "attach", "vms", "--host", host, "--user", USER, "--password-file", &password])
            .expect("attached");
    }
    site.migrate("ticker", "stock1", &[]).expect("it moves");
    verified(site, "ticker");
}

pub(crate) fn nfs_is_kept_by_the_kernels_own_server_and_client(machine: &Machine) {
    let program = std::env::var("FERRY_LAB_NFS_TESTS").expect("`cargo xtask test --stock` says where the tests are");
    let place = machine.give(Path::new(&program)).expect("given");
    let output = machine.try_run(&format!("{place} --ignored --test-threads 1"), NFS_WITHIN).expect("it ends");
    assert!(output.ok(), "{}{}", output.out, output.err);
    // No test was skipped.
    assert!(output.out.contains("test result: ok. 3 passed; 0 failed; 0 ignored"), "{}", output.out);
}
