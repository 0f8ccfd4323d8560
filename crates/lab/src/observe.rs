//! Observations from outside: heartbeats on each host's port, and traffic on the link, independent of libvirt and
//! Ferry.
//!
//! There is one tcpdump per port; its pcap stream is parsed here.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::{
    guest::{Ticker, ask_all},
    host::Host,
    lab::Lab,
    run::wait_for,
};

/// The marker in every page of a ticker's memory.
pub const MARK: &[u8; 16] = b"FERRY-PLAINTEXT!";
/// Ethernet, IPv4 and UDP headers before a heartbeat. They may contain any byte, including a brace.
const HEADERS: usize = 14 + 20 + 8;
/// A guest that was not heard from a host for this long does not run there.
const SILENCE: Duration = Duration::from_millis(700);
/// How long a guest may take to confirm a request: after a move, a guest whose processor is emulated twice may be
/// silent for several seconds.
const HEARS_WITHIN: Duration = Duration::from_secs(120);
/// Interval after which a request is sent again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// One heartbeat, as in the packet.
#[derive(Clone, Debug, Deserialize)]
pub struct Beat {
    /// The guest.
    pub vm: String,
    /// Increases by one with each heartbeat.
    pub count: u64,
    /// Pages compared so far.
    pub pages: u64,
    /// Complete passes over all pages.
    pub page_passes: u64,
    /// Pages with wrong content.
    pub bad_pages: u64,
    /// Sectors compared so far.
    pub sectors: u64,
    /// Complete passes over all sectors.
    pub sector_passes: u64,
    /// Sectors with wrong content.
    pub bad_sectors: u64,
    /// Sectors written.
    pub writes: u64,
    /// The last received request of `rest`, `hasten` and `restless`.
    pub asked: String,
}

/// A heartbeat that was observed.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The host on whose port it was observed.
    pub host: String,
    /// Its time since 1970, on the machine's clock.
    pub at: Duration,
    /// Its content.
    pub beat: Beat,
}

/// Observes the ports of all hosts.
pub struct Observer {
    beats: Arc<Mutex<Vec<Heard>>>,
    children: Vec<Child>,
}

impl Observer {
    /// Starts to observe the ports of the lab's hosts.
    ///
    /// # Errors
    /// tcpdump cannot be started.
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let ports = lab.hosts.iter().map(|host| (host.name.clone(), host.port.clone()));
        Self::start_at(lab, ports)
    }

    /// Starts to observe ports of the fabric, each with the name of the host behind it.
    ///
    /// # Errors
    /// tcpdump cannot be started.
    pub fn start_at(lab: &Lab, ports: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let beats = Arc::new(Mutex::new(Vec::new()));
        let mut children = Vec::new();
        for (name, port) in ports {
            let (child, mut packets) = tcpdump(lab, &port, "in", "udp dst port 7007")?;
            children.push(child);
            let beats = Arc::clone(&beats);
            std::thread::spawn(move || {
                while let Some((at, packet)) = packets.next_packet() {
                    if let Some(beat) = beat_in(&packet) {
                        beats.lock().expect("no thread panicked").push(Heard { host: name.clone(), at, beat });
                    }
                }
            });
        }
        Ok(Self { beats, children })
    }

    /// All heartbeats of a guest so far, oldest first.
    pub fn heard(&self, vm: &str) -> Vec<Heard> {
        let mut heard: Vec<Heard> = self
            .beats
            .lock()
            .expect("no thread panicked")
            .iter()
            .filter(|heard| heard.beat.vm == vm)
            .cloned()
            .collect();
        heard.sort_by_key(|heard| heard.at);
        heard
    }

    /// The last heartbeat of a guest.
    pub fn last(&self, vm: &str) -> Option<Heard> {
        self.beats.lock().expect("no thread panicked").iter().rev().find(|heard| heard.beat.vm == vm).cloned()
    }

    /// The hosts that a guest is heard from now.
    pub fn runs_on(&self, vm: &str) -> Vec<String> {
        let now = now();
        let beats = self.beats.lock().expect("no thread panicked");
        let mut hosts: Vec<String> = beats
            .iter()
            .rev()
            .take_while(|heard| now.saturating_sub(heard.at) < SILENCE * 2)
            .filter(|heard| heard.beat.vm == vm && now.saturating_sub(heard.at) < SILENCE)
            .map(|heard| heard.host.clone())
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// Waits until a guest is heard from this host and no other.
    ///
    /// # Errors
    /// It is not in time.
    pub fn wait_on(&self, vm: &str, host: &str, deadline: Duration) -> anyhow::Result<()> {
        wait_for(&format!("{vm} is heard from {host} alone"), deadline, || (self.runs_on(vm) == [host]).then_some(()))
    }

    /// Waits until the guest has verified all its pages and sectors `passes` times from now on.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_verified(&self, vm: &str, passes: u64, deadline: Duration) -> anyhow::Result<()> {
        let last = || self.heard(vm).pop().map(|heard| heard.beat);
        let before = last().context("The guest was never heard")?;
        let verified = wait_for(&format!("{vm} verifies its memory and disk"), deadline, || {
            let now = last()?;
            // The pass in progress at the start does not count.
            (now.page_passes > before.page_passes + passes && now.sector_passes > before.sector_passes + passes)
                .then_some(())
        });
        verified.with_context(|| format!("{vm} said {before:?} when this began, and {:?} last", self.last(vm)))
    }

    /// Sends all guests the request `rest`, `hasten` or `restless`, repeatedly until a heartbeat of this one confirms it,
    /// because a datagram may be lost.
    ///
    /// # Errors
    /// The guest did not confirm it in time.
    pub fn ask(&self, lab: &Lab, vm: &str, request: &str) -> anyhow::Result<()> {
        self.confirmed(vm, request, || ask_all(lab, request))
    }

    /// Changes one byte of a guest's memory. Datagrams to a VM that has just moved may be lost, so the request is
    /// repeated until a heartbeat confirms it.
    ///
    /// # Errors
    /// The guest did not confirm it in time.
    pub fn flip(&self, lab: &Lab, guest: &Ticker) -> anyhow::Result<()> {
        self.confirmed(&guest.name, "flip", || guest.ask(lab, "flip"))
    }

    fn confirmed(&self, vm: &str, request: &str, send: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let began = now();
        let mut sent = None;
        wait_for(&format!("{vm} hears `{request}`"), HEARS_WITHIN, || {
            if sent.is_none_or(|sent: Instant| sent.elapsed() > ASK_EVERY) {
                sent = Some(Instant::now());
                // If it cannot be sent now, it is sent again later.
                let _ = send();
            }
            let last = self.last(vm)?;
            (last.at > began && last.beat.asked == request).then_some(())
        })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The machine's clock.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Statistics from a guest's heartbeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Pages compared since the first heartbeat.
    pub pages: u64,
    /// Sectors compared since the first heartbeat.
    pub sectors: u64,
    /// The longest time between two heartbeats. Milliseconds.
    pub gap_ms: u64,
}

/// Judges heartbeats, oldest first.
///
/// # Errors
/// The broken promise: two hosts at once, a counter that decreased, a wrong page or sector.
pub fn judge(heard: &[Heard]) -> anyhow::Result<Verified> {
    let (Some(first), Some(last)) = (heard.first(), heard.last()) else { bail!("the guest was never heard") };
    let mut gap = Duration::ZERO;
    let mut latest: BTreeMap<&str, u64> = BTreeMap::new();
    for pair in heard.windows(2) {
        let [one, next] = pair else { continue };
        gap = gap.max(next.at.saturating_sub(one.at));
        latest.insert(&one.host, one.beat.count);
        if next.beat.count <= one.beat.count {
            let split = next.host != one.host && latest.contains_key(next.host.as_str());
            ensure!(!split, "split: {} was heard from {} and from {} at once", next.beat.vm, one.host, next.host);
            bail!("the counter of {} went from {} back to {}", next.beat.vm, one.beat.count, next.beat.count);
        }
    }
    // After a VM has moved to another host, it is not heard from the first one again, unless it moves back.
    for window in heard.windows(3) {
        let [one, two, three] = window else { continue };
        ensure!(
            !(one.host == three.host && one.host != two.host),
            "split: {} was heard from {} and from {} in turn",
            one.beat.vm,
            one.host,
            two.host
        );
    }
    ensure!(last.beat.bad_pages == 0, "{} page(s) did not hold what the guest wrote", last.beat.bad_pages);
    ensure!(last.beat.bad_sectors == 0, "{} sector(s) did not hold what the guest wrote", last.beat.bad_sectors);
    Ok(Verified {
        pages: last.beat.pages - first.beat.pages,
        sectors: last.beat.sectors - first.beat.sectors,
        gap_ms: gap.as_millis() as u64,
    })
}

/// Captures a host's traffic with other hosts, and searches it for a guest's memory.
pub struct Capture {
    bytes: Arc<AtomicU64>,
    hits: Arc<AtomicU64>,
    child: Child,
}

impl Capture {
    /// Starts to capture at a host's port.
    ///
    /// # Errors
    /// tcpdump cannot be started.
    pub fn start(lab: &Lab, host: &Host) -> anyhow::Result<Self> {
        let others: Vec<String> =
            lab.hosts.iter().filter(|other| other.ip != host.ip).map(|other| format!("host {}", other.ip)).collect();
        let filter = format!("tcp and host {} and ({})", host.ip, others.join(" or "));
        let (child, mut packets) = tcpdump(lab, &host.port, "inout", &filter)?;
        let (bytes, hits) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, found) = (Arc::clone(&bytes), Arc::clone(&hits));
        std::thread::spawn(move || {
            while let Some((_, packet)) = packets.next_packet() {
                count.fetch_add(packet.len() as u64, Relaxed);
                if holds_mark(&packet) {
                    found.fetch_add(1, Relaxed);
                }
            }
        });
        Ok(Self { bytes, hits, child })
    }

    /// Bytes captured so far, and packets that contained the marker.
    pub fn so_far(&self) -> (u64, u64) {
        (self.bytes.load(Relaxed), self.hits.load(Relaxed))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a packet contains a guest's memory unencrypted.
pub fn holds_mark(packet: &[u8]) -> bool {
    memchr::memmem::find(packet, MARK).is_some()
}

/// The heartbeat in a packet.
fn beat_in(packet: &[u8]) -> Option<Beat> {
    let text = packet.get(HEADERS..)?;
    let end = text.iter().rposition(|byte| *byte == b'}')?;
    serde_json::from_slice(&text[..=end]).ok()
}

fn tcpdump(lab: &Lab, port: &str, direction: &str, filter: &str) -> anyhow::Result<(Child, Packets)> {
    let mut command = lab.in_fabric("tcpdump");
    command.args(["-i", port, "-Q", direction, "-n", "-Z", "root", "-s", "0", "-U", "-B", "32768", "-w", "-", filter]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("Could not start tcpdump")?;
    let stream = child.stdout.take().context("tcpdump has no output")?;
    // tcpdump writes the file header once it listens: all later packets are captured.
    let packets = Packets::open(stream).context("tcpdump does not listen")?;
    Ok((child, packets))
}

/// A pcap stream.
struct Packets {
    stream: BufReader<Box<dyn Read + Send>>,
}

impl Packets {
    fn open(stream: impl Read + Send + 'static) -> anyhow::Result<Self> {
        let mut stream: BufReader<Box<dyn Read + Send>> = BufReader::with_capacity(1 << 20, Box::new(stream));
        let mut header = [0; 24];
        stream.read_exact(&mut header)?;
        ensure!(header[..4] == [0xd4, 0xc3, 0xb2, 0xa1], "tcpdump writes another format than expected");
        Ok(Self { stream })
    }

    fn next_packet(&mut self) -> Option<(Duration, Vec<u8>)> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).ok()?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut packet = vec![0; word(8).min(1 << 20) as usize];
        self.stream.read_exact(&mut packet).ok()?;
        Some((Duration::new(u64::from(word(0)), word(4).saturating_mul(1000)), packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(host: &str, at_ms: u64, count: u64) -> Heard {
        let beat = Beat {
            vm: "ticker".into(),
            count,
            pages: count * 10,
            page_passes: 0,
            bad_pages: 0,
            sectors: count,
            sector_passes: 0,
            bad_sectors: 0,
            writes: 0,
            asked: "rest".into(),
        };
        Heard { host: host.into(), at: Duration::from_millis(at_ms), beat }
    }

    #[test]
    fn a_good_move_is_judged_good_and_its_gap_measured() {
        let beats = [heard("a", 0, 1), heard("a", 10, 2), heard("b", 130, 3), heard("b", 140, 4)];
        assert_eq!(judge(&beats).expect("good"), Verified { pages: 30, sectors: 3, gap_ms: 120 });
    }

    #[test]
    fn each_broken_promise_is_found() {
        let bad = |change: fn(&mut Beat)| {
            let mut last = heard("b", 20, 3);
            change(&mut last.beat);
            vec![heard("a", 0, 1), last]
        };
        for (beats, word) in [
            (vec![], "never heard"),
            (vec![heard("a", 0, 1), heard("b", 10, 2), heard("a", 15, 2)], "split"),
            (vec![heard("a", 0, 1), heard("b", 10, 2), heard("a", 15, 3)], "split"),
            (vec![heard("a", 0, 5), heard("b", 10, 4)], "back"),
            (bad(|beat| beat.bad_pages = 1), "page"),
            (bad(|beat| beat.bad_sectors = 1), "sector"),
        ] {
            let error = judge(&beats).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_brace_in_a_packets_headers_hides_no_heartbeat() {
        let mut packet = vec![b'{'; HEADERS];
        packet.extend(
            br#"{"vm":"a","count":7,"pages":0,"page_passes":0,"bad_pages":0,"sectors":0,"sector_passes":0,"bad_sectors":0,"writes":0,"asked":"rest"}"#,
        );
        assert_eq!(beat_in(&packet).expect("a beat").count, 7);
        assert!(beat_in(&packet[..HEADERS - 1]).is_none() && beat_in(&packet[..HEADERS]).is_none());
    }

    #[test]
    fn memory_in_a_packet_is_found() {
        let mut packet = vec![7; 1400];
        assert!(!holds_mark(&packet));
        packet[700..716].copy_from_slice(MARK);
        assert!(holds_mark(&packet));
    }
}
