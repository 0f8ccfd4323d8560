//! How fast bytes go through a Samba share on loopback, and how long a small message takes there and back. Needs root and
//! `smbd`. `cargo run --release -p ferry-agent --example spool [MiB]`
//!
//! - `files`: segments that one client writes and another reads and deletes, four in flight, for several sizes.
//! - `pipe`: a pipe over a spool, as a channel uses it: its segments are as large as they become.
//! - `message`: 32 bytes there and 32 back, on a pipe with nothing else.
//!
//! As in a move, each end has one thread. `ferry-wire`'s example `throughput` tells what a direct connection does.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ferry_agent::live::spool::SmbShare;
use ferry_core::{id::SessionId, pin::Secret};
use ferry_drivers::share::smb::files::SmbFiles;
use ferry_wire::{
    hello::Channel,
    transport::{
        Listener as _, Pipe, Transport as _,
        spool::{Spool, SpoolAcceptor, SpoolDialer, local::LocalShare, share::Share},
    },
};
use smbd::{Samba, credentials, enter};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    runtime::Builder,
    sync::{Semaphore, mpsc},
};
use uuid::Uuid;

#[path = "../../drivers/tests/smbd/mod.rs"]
mod smbd;

const MIB: usize = 1 << 20;
const IN_FLIGHT: usize = 4;
const MESSAGES: usize = 200;

type Fault = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Fault> {
    if !enter(std::env::args().skip(1)) {
        return Ok(());
    }
    let mib: usize = std::env::args().nth(1).map_or(Ok(1024), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let mut samba = Samba::new(directory.path(), "");
    let local = Arc::new(LocalShare::new(directory.path()));
    for (name, is_local) in [("samba", false), ("local folder", true)] {
        let ends: Vec<_> = (0..2)
            .map(|_| Builder::new_multi_thread().worker_threads(1).enable_all().build())
            .collect::<Result<_, _>>()?;
        let mut shares: Vec<Arc<dyn Share>> = Vec::new();
        for end in &ends {
            shares.push(match is_local {
                true => local.clone(),
                false => Arc::new(SmbShare::new(end.block_on(login())?)),
            });
        }
        let measured = Measured { near: shares[0].clone(), far: shares[1].clone(), ends: &ends };
        for size in [64 << 10, 256 << 10, MIB, 4 * MIB, 16 * MIB] {
            let seconds = measured.files(size, mib * MIB / size)?.as_secs_f64();
            println!("{name}: files of {} KiB: {:.0} MB/s", size >> 10, (mib * MIB) as f64 / 1e6 / seconds);
        }
        measured.pipe(name, mib)?;
    }
    samba.stop();
    drop(directory);
    Ok(())
}

async fn login() -> Result<SmbFiles, Fault> {
    Ok(SmbFiles::connect(&r"\\fs1.ferry.test\vms".parse()?, &credentials()).await?)
}

struct Measured<'a> {
    near: Arc<dyn Share>,
    far: Arc<dyn Share>,
    ends: &'a [tokio::runtime::Runtime],
}

impl Measured<'_> {
    /// How long `count` files take to be written, read and deleted.
    fn files(&self, size: usize, count: usize) -> Result<Duration, Fault> {
        let (near, far) = (self.near.clone(), self.far.clone());
        let content = Bytes::from(noise(size));
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        let (told, mut written) = mpsc::unbounded_channel();
        self.ends[0].block_on(near.make("files"))?;
        let begun = Instant::now();
        let writer = {
            let (room, content) = (room.clone(), content.clone());
            self.ends[0].spawn(async move {
                for number in 0..count {
                    let permit = room.clone().acquire_owned().await?;
                    permit.forget();
                    let (near, content, told) = (near.clone(), content.clone(), told.clone());
                    tokio::spawn(async move {
                        near.publish(&format!("files/{number}"), content).await?;
                        let _ = told.send(number);
                        Ok::<_, Fault>(())
                    });
                }
                Ok::<_, Fault>(())
            })
        };
        let reader = self.ends[1].spawn(async move {
            let mut done = 0;
            while let Some(number) = written.recv().await {
                let path = format!("files/{number}");
                let bytes = far.read(&path, size).await?.ok_or("a file is missing")?;
                if bytes.len() != content.len() {
                    return Err("a file is not whole".into());
                }
                far.delete(&path).await?;
                room.add_permits(1);
                done += 1;
                if done == count {
                    break;
                }
            }
            Ok::<_, Fault>(())
        });
        self.ends[0].block_on(writer)??;
        self.ends[1].block_on(reader)??;
        let taken = begun.elapsed();
        self.ends[0].block_on(self.near.remove("files"))?;
        Ok(taken)
    }

    fn pipe(&self, name: &str, mib: usize) -> Result<(), Fault> {
        let (session, secret) = (SessionId(Uuid::new_v4()), Secret([1; 32]));
        let near = self.ends[0].block_on(Spool::open(self.near.clone(), session, &secret))?;
        let far = self.ends[1].block_on(Spool::open(self.far.clone(), session, &secret))?;
        let dialer = SpoolDialer::new(near.clone());
        let spool = far.clone();
        let accepted = self.ends[1].spawn(async move {
            let acceptor = SpoolAcceptor::new(spool);
            let mut pipe = acceptor.accept().await?.1.await?;
            let mut message = [0; 32];
            for _ in 0..=MESSAGES {
                pipe.read_exact(&mut message).await?;
                pipe.write_all(&message).await?;
            }
            let mut bytes = vec![0; 256 << 10];
            let mut total = 0_u64;
            loop {
                match pipe.read(&mut bytes).await? {
                    0 => break,
                    count => total += count as u64,
                }
            }
            pipe.shutdown().await?;
            Ok::<_, Fault>(total)
        });
        let sent = self.ends[0].block_on(self.ends[0].spawn(send(dialer, mib, name.to_owned(), near.clone())))??;
        let total = self.ends[1].block_on(accepted)??;
        let seconds = sent.elapsed().as_secs_f64();
        println!("{name}: pipe: {:.0} MB/s", total as f64 / 1e6 / seconds);
        drop(near);
        self.ends[1].block_on(far.clear())?;
        Ok(())
    }
}

async fn send(dialer: SpoolDialer, mib: usize, name: String, spool: Arc<Spool>) -> Result<Instant, Fault> {
    let mut pipe: Pipe = dialer.open(Channel::Memory(0)).await?;
    let mut times = Vec::new();
    let mut message = [7; 32];
    for _ in 0..=MESSAGES {
        let begun = Instant::now();
        pipe.write_all(&message).await?;
        pipe.read_exact(&mut message).await?;
        times.push(begun.elapsed());
    }
    times.remove(0);
    times.sort();
    println!(
        "{name}: message there and back: {:.2} ms in the middle, {:.2} ms at most",
        times[MESSAGES / 2].as_secs_f64() * 1e3,
        times[MESSAGES - 1].as_secs_f64() * 1e3
    );
    let begun = Instant::now();
    let chunk = noise(256 << 10);
    let before = spool.published_bytes();
    let (mut reader, mut writer) = split(pipe);
    for _ in 0..mib * MIB / chunk.len() {
        writer.write_all(&chunk).await?;
    }
    writer.shutdown().await?;
    reader.read_to_end(&mut Vec::new()).await?;
    println!("{name}: pipe: {:.1} MB on the share", (spool.published_bytes() - before) as f64 / 1e6);
    Ok(begun)
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
