//! The spool on a share of a real Samba server, in network and mount namespaces of its own.
//!
//! Needs root and `smbd`; if they are missing, reports that and stops.

use std::{path::Path, sync::Arc, time::Duration};

use ferry_agent::live::spool::SmbShare;
use ferry_core::{id::SessionId, pin::Secret, unc::UncPath};
use ferry_drivers::share::{ShareError, smb::files::SmbFiles};
use ferry_wire::{
    hello::Channel,
    transport::{
        Listener as _, Transport as _,
        spool::{FOLDER, Spool, SpoolAcceptor, SpoolDialer, conformance, share::Share as _},
    },
};
use smbd::{Samba, credentials, is_inside};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use uuid::Uuid;

#[path = "../../drivers/tests/smbd/mod.rs"]
mod smbd;

const DEADLINE: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

fn unc(share: &str) -> UncPath {
    format!("\\\\fs1.ferry.test\\{share}").parse().expect("well formed")
}

async fn files() -> SmbFiles {
    SmbFiles::connect(&unc("vms"), &credentials()).await.expect("a login")
}

/// Runs a test with a server and as many threads as a carrier has: one.
fn with_samba(protocol: &str, test: impl AsyncFnOnce(Samba, &Path)) {
    let directory = tempfile::tempdir().expect("a directory");
    let samba = Samba::new(directory.path(), protocol);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, test(samba, directory.path())).await.expect("done in time");
    });
}

#[test]
fn a_samba_share_is_a_share() {
    if !is_inside("a_samba_share_is_a_share") {
        return;
    }
    with_samba("server min protocol = SMB3_11", async |mut samba, directory| {
        let (one, other) = (Arc::new(SmbShare::new(files().await)), Arc::new(SmbShare::new(files().await)));
        conformance::run(one, other).await;
        let left = std::fs::read_dir(directory.join("data")).expect("there").count();
        assert_eq!(left, 0, "something stays on the share");
        samba.stop();
    });
}

#[test]
fn a_pipe_outlives_a_restart_of_its_server() {
    if !is_inside("a_pipe_outlives_a_restart_of_its_server") {
        return;
    }
    with_samba("", async |mut samba, directory| {
        let (session, secret) = (SessionId(Uuid::new_v4()), Secret([9; 32]));
        let open =
            async || Spool::open(Arc::new(SmbShare::new(files().await)), session, &secret).await.expect("opened");
        let (near, far) = (open().await, open().await);
        let (dialer, acceptor) = (SpoolDialer::new(near.clone()), SpoolAcceptor::new(far.clone()));
        let mut source = dialer.open(Channel::Memory(0)).await.expect("opened");
        source.write_all(b"!").await.expect("taken");
        let mut destination = acceptor.accept().await.expect("accepted").1.await.expect("opened");
        assert_eq!(destination.read_u8().await.expect("arrived"), b'!');
        let bytes: Vec<u8> = (0..64 * MIB).map(|index| (index % 251) as u8).collect();
        let (_, mut writer) = split(source);
        let send = async {
            for part in bytes.chunks(MIB) {
                writer.write_all(part).await.expect("taken");
            }
            writer.shutdown().await.expect("closed");
        };
        let receive = async {
            let mut got = vec![0; 8 * MIB];
            destination.read_exact(&mut got).await.expect("arrived");
            // In the middle of it: segments are being written and read.
            samba.stop();
            samba.start();
            destination.read_to_end(&mut got).await.expect("arrived");
            assert!(got == bytes, "{} bytes arrived changed", got.len());
        };
        tokio::join!(send, receive);
        drop((destination, acceptor, dialer, near));
        far.clear().await.expect("cleared");
        // The folder is gone when nobody watches it any more.
        while std::fs::read_dir(directory.join("data").join(FOLDER)).expect("there").count() > 0 {
            tokio::task::yield_now().await;
        }
        samba.stop();
    });
}

#[test]
fn a_login_that_is_refused_is_told() {
    if !is_inside("a_login_that_is_refused_is_told") {
        return;
    }
    with_samba("", async |mut samba, _| {
        let mut wrong = credentials();
        wrong.password.push('!');
        let refused = SmbFiles::connect(&unc("vms"), &wrong).await.err();
        assert!(matches!(refused, Some(ShareError::Password { .. })), "{refused:?}");
        let missing = SmbFiles::connect(&unc("none"), &credentials()).await.err();
        assert!(matches!(missing, Some(ShareError::NoShare { .. })), "{missing:?}");
        let share = SmbShare::new(files().await);
        assert_eq!(share.name(), r"\\fs1.ferry.test\vms");
        samba.stop();
        let silent = SmbFiles::connect(&unc("vms"), &credentials()).await.err();
        assert!(matches!(silent, Some(ShareError::Unreachable { .. })), "{silent:?}");
    });
}
