//! A cable between two hosts, with a configurable delay and rate, because the kernel here has no netem.
//!
//! ```text
//! host ─ mig0 (tap) ─▶ pump: waits for its turn at the rate ─▶ in flight for the delay ─▶ mig0 (tap) ─ other host
//! ```
//! Frames pass as the kernel emits them, including large unsegmented ones, so that a cable costs little processor time.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    libc,
    sched::{CloneFlags, setns},
};

use crate::{
    host::Host,
    run::{DEADLINE, checked},
};

/// The cable's network; it exists only between the two hosts.
pub const NETWORK: &str = "10.79.0";
/// The network interface at each end.
pub const DEVICE: &str = "mig0";
/// Longest frame: the largest that the kernel builds, with its two headers.
const FRAME_MAX: usize = 66_000;
/// How long a frame waits for its turn at most: it is dropped if the queue is longer, as by a switch.
const QUEUE: Duration = Duration::from_millis(50);
/// Limit of frames in flight: more than any rate and delay in a lab produce.
const FRAMES_MAX: usize = 65_536;
/// Work that the kernel may leave to the other end: checksums, and segmenting of large TCP frames (linux/if_tun.h).
const OFFLOADS: libc::c_int = 0x01 | 0x02 | 0x04;

nix::ioctl_write_ptr_bad!(
    /// Attaches the descriptor to a device, which is created if it does not exist.
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    /// Sets the offloads for frames that are read.
    tun_set_offload,
    libc::TUNSETOFFLOAD
);

/// Delay and rate of a cable.
#[derive(Debug, Default)]
struct Shape {
    /// One-way delay in nanoseconds.
    delay: AtomicU64,
    /// Bits per second; 0: unlimited.
    rate: AtomicU64,
}

/// A cable that exists until it is dropped.
pub struct Cable {
    shape: Arc<Shape>,
    namespaces: [String; 2],
}

impl Cable {
    /// Connects two hosts by a cable; [`address`] returns the ends' addresses.
    ///
    /// # Errors
    /// The kernel refuses a request.
    pub fn lay(ends: [&Host; 2]) -> anyhow::Result<Self> {
        let shape = Arc::new(Shape::default());
        let cable = Self { shape: Arc::clone(&shape), namespaces: ends.map(|host| host.namespace.clone()) };
        let mut taps = Vec::new();
        for (index, namespace) in cable.namespaces.iter().enumerate() {
            let tap = open_tap(namespace).with_context(|| format!("No cable at {}", ends[index].name))?;
            for line in [format!("addr add {}/24 dev {DEVICE}", address(index)), format!("link set {DEVICE} up")] {
                let mut command = std::process::Command::new("ip");
                command.args(["-n", namespace]).args(line.split(' '));
                checked(command, DEADLINE)?;
            }
            taps.push(tap);
        }
        for (from, to) in [(0, 1), (1, 0)] {
            pump(taps[from].try_clone()?, taps[to].try_clone()?, Arc::clone(&shape));
        }
        Ok(cable)
    }

    /// Changes the cable from now on: one-way delay, and bits per second; `None` means unlimited.
    pub fn set(&self, delay: Duration, rate: Option<u64>) {
        self.shape.delay.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.shape.rate.store(rate.unwrap_or(0), Relaxed);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // Without its device a pump ends. The device may be gone already.
            let mut command = std::process::Command::new("ip");
            command.args(["-n", namespace, "link", "del", DEVICE]);
            let _ = checked(command, DEADLINE);
        }
    }
}

/// The address of the first or the second end.
pub fn address(end: usize) -> String {
    format!("{NETWORK}.{}", end + 1)
}

/// Creates the device in a network namespace. It disappears with the last descriptor, or when it is deleted.
fn open_tap(namespace: &str) -> anyhow::Result<File> {
    let namespace = File::open(format!("/run/netns/{namespace}"))?;
    let open = move || -> anyhow::Result<File> {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: a zeroed request has no name and no flags.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the descriptor and the request are valid for the call.
        unsafe { tun_set_iff(tap.as_raw_fd(), &raw const request) }?;
        // SAFETY: the descriptor is valid.
        unsafe { tun_set_offload(tap.as_raw_fd(), OFFLOADS) }?;
        Ok(tap)
    };
    // In a thread of its own, because only that thread may enter the namespace.
    thread::spawn(open).join().expect("no thread panicked")
}

/// Forwards frames in one direction, in two threads that end with the device.
fn pump(mut from: File, mut to: File, shape: Arc<Shape>) {
    let (sender, on_their_way) = mpsc::sync_channel::<(Instant, Vec<u8>)>(FRAMES_MAX);
    thread::spawn(move || {
        let mut frame = vec![0; FRAME_MAX];
        let mut free = Instant::now();
        // Reading fails once the device is gone.
        while let Ok(length) = from.read(&mut frame) {
            let now = Instant::now();
            let turn = free.max(now) + time_of(length, shape.rate.load(Relaxed));
            if turn > now + QUEUE {
                continue;
            }
            free = turn;
            let due = turn + Duration::from_nanos(shape.delay.load(Relaxed));
            if let Err(TrySendError::Disconnected(_)) = sender.try_send((due, frame[..length].to_vec())) {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, frame) in on_their_way {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A device that is down accepts nothing: the frame is lost, as on an unplugged cable.
            let _ = to.write(&frame);
        }
    });
}

/// The time to send these bytes at a rate in bits per second.
fn time_of(bytes: usize, rate: u64) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_takes_its_bits_at_the_rate() {
        assert_eq!(time_of(125_000, 1_000_000_000), Duration::from_millis(1));
        assert_eq!(time_of(125_000, 0), Duration::ZERO);
    }
}
