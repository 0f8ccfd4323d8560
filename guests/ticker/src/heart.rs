//! Tells the world, by UDP broadcast: it counts, and what it found.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use crate::{found::Found, restless, sys, wanted::Wanted};

/// Where heartbeats go.
const PORT: u16 = 7007;
/// How often: the precision with which a downtime is seen from outside.
const EVERY: Duration = Duration::from_millis(10);
/// Datagrams read between two beats: those of some ten guests.
const READS_MAX: usize = 32;

/// Beats; never returns.
pub(crate) fn run(wanted: &Wanted, found: &Found) -> ! {
    let [a, b, c, _] = wanted.ip.octets();
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
            wanted.name,
            started.elapsed().as_millis(),
            found.pages.load(Relaxed),
            found.page_passes.load(Relaxed),
            found.bad_pages.load(Relaxed),
            found.sectors.load(Relaxed),
            found.whole_passes(),
            found.bad_sectors.load(Relaxed),
            found.writes.load(Relaxed),
        );
        // A beat that is lost shows as a gap; there is nothing else to do about it here.
        let _ = socket.send_to(beat.as_bytes(), everyone);
        // Beats of other guests, and its own, come here, too: read one by one, they would fill the queue, and a request
        // would be dropped.
        let mut request = [0; 16];
        for _ in 0..READS_MAX {
            let Ok((length, _)) = socket.recv_from(&mut request) else { break };
            if &request[..length] == b"flip" {
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
                    // One that ended by itself is what was asked for.
                    let _ = other.kill();
                    let _ = other.wait();
                }
            }
        }
        thread::sleep(EVERY * wanted.slower);
    }
}
