//! Relays the replies of the destination's libvirt to the source. The reply to Finish waits here until it is verified
//! that the VM's process has its disks: once the source's libvirtd has read it, the source's copy ends.
//!
//! ```text
//! libvirtd ─▶ relay ─ Finish: the copy is here ─▶ has it its disks? ─ yes, or unknown ─▶ reply ─▶ source
//!                                                        └─ no ─▶ the copy is destroyed ─▶ error ─▶ source: runs on
//! ```
//! Until the reply has left, the source has the VM, whatever happens here: the VM continues there when this channel
//! ends.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ferry_core::error::chain;
use ferry_drivers::hypervisor::{DiskRefused, rpc::Tap};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
};
use tracing::{error, info, warn};

use super::state::Shared;
use crate::{blocking::call, lock::lock};

/// Time limit to verify the VM's disks, which really takes milliseconds. The guest is paused meanwhile, and a source
/// whose guest was paused for ten seconds ends the move by itself.
const DISKS_WITHIN: Duration = Duration::from_secs(5);
/// Time for the source's libvirtd to disconnect after a refusal: meanwhile it reports the reason in its own words.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of libvirt's replies read at once.
const READ_BYTES: usize = 16 << 10;

/// Relays libvirt's replies until their end.
///
/// # Errors
/// I/O of either end, bytes that are not replies, or a source that stays connected after a refusal: the channel must
/// end.
pub(super) async fn relay(
    mut libvirt: impl AsyncRead + Unpin,
    refused: &Notify,
    mut source: impl AsyncWrite + Unpin,
    tap: Arc<Mutex<Tap>>,
    shared: &Shared,
) -> std::io::Result<()> {
    let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
    let mut leave_by = None;
    loop {
        let stays = async {
            match leave_by {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let length = tokio::select! {
            read = libvirt.read(&mut buffer) => read?,
            () = refused.notified() => {
                leave_by = Some(leave_by.unwrap_or_else(|| tokio::time::Instant::now() + LEAVE_WITHIN));
                continue;
            }
            () = stays => return Err(std::io::Error::other("the source was refused, and does not leave")),
        };
        if length == 0 {
            return source.shutdown().await;
        }
        out.clear();
        let seen = {
            let mut tap = lock(&tap);
            tap.replies(&buffer[..length], &mut out).map_err(std::io::Error::other)?
        };
        if let Some(reply) = seen.filter(|reply| reply.destination_has_it)
            && let Err(reason) = take_over(shared).await
        {
            reply.refuse(&mut out, &reason);
        }
        source.write_all(&out).await?;
    }
}

/// Ok: nothing is known that keeps the VM from running here. After an error, which gives the reason, its copy has been
/// ended and is never run.
async fn take_over(shared: &Shared) -> Result<(), String> {
    let (board, vm) = (&shared.board, shared.board.vm);
    let begun = Instant::now();
    let asked = call(&board.hypervisor, move |hypervisor| hypervisor.ensure_disks(vm));
    let reason = match tokio::time::timeout(DISKS_WITHIN, asked).await {
        Ok(Ok(refused)) if refused.is_empty() => {
            info!(took_us = begun.elapsed().as_micros() as u64, "Nothing keeps the VM from running here");
            return Ok(());
        }
        Ok(Ok(refused)) => describe(&shared.policy.definition.name, &refused),
        Ok(Err(error)) => {
            // libvirt may be restarting. Running the VM is retried later.
            warn!(error = %chain(&error), "It cannot be seen whether the VM has its disks here");
            return Ok(());
        }
        Err(_) => format!(
            "VM {} cannot run at the destination: it was not seen to have its disks there within {} s. Look at the \
             storage of that host, and move the VM again",
            shared.policy.definition.name,
            DISKS_WITHIN.as_secs()
        ),
    };
    // A resume comes before this or not at all.
    let _one_at_a_time = shared.resuming.lock().await;
    if board.known().state.finish_delivered {
        return Ok(());
    }
    error!(reason, "The VM is not taken over; the source keeps it");
    // Recorded first: a definition without a process would otherwise look like a VM that has run here.
    board.update(|known| known.state.given_up = true);
    board.write_down().await;
    // Before the source is informed: it needs the disks that this copy may hold in order to continue.
    let ended = call(&board.hypervisor, move |hypervisor| {
        hypervisor.destroy(vm)?;
        hypervisor.undefine(vm)
    });
    if let Err(error) = ended.await {
        warn!(error = %chain(&error), "The copy that cannot run could not be ended yet");
    }
    // The source reports the end of the move, with the text of the reply.
    board.update(|known| known.error = Some(reason.clone()));
    Err(reason)
}

/// Describes the problem and the fix.
fn describe(name: &str, refused: &[DiskRefused]) -> String {
    let one = |disk: &DiskRefused| {
        let device = if disk.device.is_empty() { "a file" } else { disk.device.as_str() };
        format!("{device} ({}): {}", disk.path.display(), disk.reason)
    };
    let all: Vec<String> = refused.iter().map(one).collect();
    let path = refused.first().map(|disk| disk.path.display().to_string()).unwrap_or_default();
    format!(
        "VM {name} cannot run at the destination, where QEMU does not get its disks: {}. Look there with `fuser -v {path}` \
         what else uses the file; on an SMB share see that it is mounted with `nobrl` on both hosts; then move the VM again",
        all.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_names_each_disk_with_its_file_the_reason_and_what_to_do() {
        let refused = |device: &str, path: &str| DiskRefused {
            device: device.to_owned(),
            path: path.into(),
            reason: "Failed to get \"write\" lock".to_owned(),
        };
        let reason = describe("web01", &[refused("vda", "/srv/a.raw"), refused("", "/srv/base.qcow2")]);
        for words in [
            "web01",
            "vda (/srv/a.raw): Failed to get \"write\" lock",
            "a file (/srv/base.qcow2)",
            "`fuser -v /srv/a.raw`",
            "nobrl",
        ] {
            assert!(reason.contains(words), "{words}: {reason}");
        }
    }
}
