//! Sends heartbeats by UDP broadcast: a counter, and the results.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use crate::{found::Found, restless, settings::Settings, sys};

/// UDP port of heartbeats and requests.
const PORT: u16 = 7007;
/// Interval between heartbeats: the precision with which downtime is measured from outside.
const EVERY: Duration = Duration::from_millis(10);
/// Limit of datagrams read between two heartbeats: those of about ten guests.
const READS_MAX: usize = 32;

/// Sends heartbeats; never returns.
pub(crate) fn run(settings: &Settings, found: &Found) -> ! {
    let [a, b, c, _] = settings.ip.octets();
    let everyone = SocketAddrV4::new(Ipv4Addr::new(a, b, c, 255), PORT);
    let socket = loop {
        let opened = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).and_then(|socket| {
            socket.set_broadcast(true)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => break socket,
            Err(error) => {
                println!("ticker: no network: {error}");
                thread::sleep(Duration::from_secs(1));
            }
        }
    };
    let started = Instant::now();
    println!("ticker: beats");
    let (mut count, mut toss, mut asked, mut crashed) = (0u64, None, "rest", false);
    loop {
        count += 1;
        let beat = format!(
            "{{\"vm\":\"{}\",\"count\":{count},\"up_ms\":{},\"pages\":{},\"page_passes\":{},\"bad_pages\":{},\
             \"sectors\":{},\"sector_passes\":{},\"bad_sectors\":{},\"writes\":{},\"asked\":\"{asked}\"}}",
            settings.name,
            started.elapsed().as_millis(),
            found.pages.load(Relaxed),
            found.page_passes.load(Relaxed),
            found.bad_pages.load(Relaxed),
            found.sectors.load(Relaxed),
            found.whole_passes(),
            found.bad_sectors.load(Relaxed),
            found.writes.load(Relaxed),
        );
        // A lost heartbeat shows as a gap; nothing can be done about it here.
        let _ = socket.send_to(beat.as_bytes(), everyone);
        // Heartbeats of all guests, including its own, arrive here as well. If only one were read at a time, they would
        // fill the queue, and a request would be dropped.
        let mut request = [0; 16];
        for _ in 0..READS_MAX {
            let Ok((length, _)) = socket.recv_from(&mut request) else { break };
            // Repeated until a heartbeat confirms it: a second change would undo the first.
            if &request[..length] == b"flip" && asked != "flip" {
                asked = "flip";
                println!("ticker: one byte of memory is changed on request");
                found.flip.store(true, Relaxed);
            }
            if &request[..length] == b"crash" && !crashed {
                crashed = true;
                sys::crash();
            }
            if &request[..length] == b"restless" {
                asked = "restless";
                if toss.is_none() {
                    toss = restless::start();
                }
            }
            if &request[..length] == b"hasten" {
                asked = "hasten";
                found.hastens.store(true, Relaxed);
            }
            if &request[..length] == b"rest" {
                asked = "rest";
                found.hastens.store(false, Relaxed);
                if let Some(mut other) = toss.take() {
                    // It may have ended already.
                    let _ = other.kill();
                    let _ = other.wait();
                }
            }
        }
        thread::sleep(EVERY * settings.slower);
    }
}
