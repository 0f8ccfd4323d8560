//! Disks through two carriers between real programs: qemu-nbd serves the image, qemu-img, nbdcopy and nbdinfo ask.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use crate::scan::scan;
use ferry_wire::{
    channel::{Options, carry},
    content::index::{ContentIndex, ContentKey},
    meter::Meter,
    nbd::{self, Image, ImageContent, NbdMeter},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, duplex},
    net::{UnixListener, UnixStream},
    process::{Child, ChildStdin, ChildStdout, Command},
};

const LIMIT: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(60);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 1 << 30;
const KEY: ContentKey = ContentKey([9; 32]);

async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(DEADLINE, output).await.expect("done in time").expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {stderr}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A qemu-nbd that serves one image until it is dropped.
struct Server {
    pid: Pid,
    socket: PathBuf,
}

impl Server {
    async fn start(folder: &Path, format: &str, discard: &str, image: &Path) -> Self {
        let (socket, pid_file) = (folder.join("server.sock"), folder.join("server.pid"));
        let (_, discard) = (fs::remove_file(&socket), format!("--discard={discard}"));
        // With --fork it returns when it listens.
        let arguments = [
            "--fork",
            "--persistent",
            "--shared=4",
            "-f",
            format,
            &discard,
            "-k",
            text(&socket),
            "--pid-file",
            text(&pid_file),
            text(image),
        ];
        // qemu-nbd keeps its error output open, which would be waited for.
        let status = Command::new("qemu-nbd").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.await.expect("qemu-nbd starts").success());
        let pid = fs::read_to_string(&pid_file).expect("a process id").trim().parse().expect("a number");
        Self { pid: Pid::from_raw(pid), socket }
    }

    /// Ends it and waits until all that it holds is written.
    async fn stop(&self) {
        kill(self.pid, Signal::SIGTERM).expect("it runs");
        tokio::time::timeout(DEADLINE, async {
            while kill(self.pid, None).is_ok() && !is_zombie(self.pid) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// Where nobody collects what has ended.
fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// Two carriers between a socket for clients and a server.
struct Line {
    socket: PathBuf,
    meter: Arc<Meter>,
    nbd: Arc<NbdMeter>,
    far_nbd: Arc<NbdMeter>,
    task: tokio::task::JoinHandle<()>,
}

impl Line {
    /// Each connection of a client gets a channel. `Image` and `ImageContent` are used for the first; the others know nothing.
    fn start(folder: &Path, server: &Path, image: Image, content: ImageContent) -> Self {
        let socket = folder.join("source.sock");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("bound");
        let (meter, nbd, far_nbd) = (Arc::<Meter>::default(), Arc::<NbdMeter>::default(), Arc::<NbdMeter>::default());
        let (our_meter, our_nbd, our_far_nbd) = (Arc::clone(&meter), Arc::clone(&nbd), Arc::clone(&far_nbd));
        let server = server.to_owned();
        let task = tokio::spawn(async move {
            let mut first = Some((image, content));
            while let Ok((client, _)) = listener.accept().await {
                let (image, content) = first.take().unwrap_or_default();
                let served = UnixStream::connect(&server).await.expect("the server listens");
                let (one, other) = duplex(MIB as usize);
                let filter = Box::new(nbd::source(image, Arc::clone(&our_nbd)));
                let near = Options { filter: Some(filter), ..Options::new(LIMIT, Arc::clone(&our_meter)) };
                let filter = Box::new(nbd::destination(content, Arc::clone(&our_far_nbd)));
                let far = Options { filter: Some(filter), ..Options::new(LIMIT, Arc::default()) };
                tokio::spawn(async move {
                    let (reader, writer) = client.into_split();
                    // How a client leaves is its own business.
                    let _ = carry(vec![one], reader, writer, near).await;
                });
                tokio::spawn(async move {
                    let (reader, writer) = served.into_split();
                    let _ = carry(vec![other], reader, writer, far).await;
                });
            }
        });
        Self { socket, meter, nbd, far_nbd, task }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", text(&self.socket))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn noise(length: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8 | 1
        })
        .collect()
}

/// A disk of 1 GiB with some MiB of data as a file system leaves them: long files, short ones that end within a
/// block, scattered pages, and zeroes that were written. Returns the bytes of its pages that are not all zero.
fn make_disk(path: &Path) -> u64 {
    let file = File::create(path).expect("created");
    file.set_len(DISK_BYTES).expect("sparse");
    let mut data = 0;
    let mut put = |offset: u64, length: u64| {
        file.write_all_at(&noise(length, offset), offset).expect("written");
        data += length.div_ceil(4 * KIB) * 4 * KIB;
    };
    put(0, 4 * KIB);
    put(MIB, 12 * MIB);
    put(100 * MIB, 3 * MIB + 300 * KIB);
    for at in 0..64 {
        // Half-filled mirror chunks, and files of 1 to 16 pages.
        put(200 * MIB + at * 512 * KIB, (1 + at % 16) * 4 * KIB - 100);
    }
    for at in 0..200 {
        put(400 * MIB + at * 132 * KIB, 4 * KIB);
    }
    put(DISK_BYTES - 8 * KIB, 8 * KIB);
    file.write_all_at(&vec![0; 5 * MIB as usize], 600 * MIB).expect("written");
    data
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("there").blocks() * 512
}

/// What a copy leaves: content as it was, and how much is allocated.
struct Copy {
    allocated: u64,
    sent: u64,
    line: Line,
}

async fn copy(
    folder: &TempDir,
    format: &str,
    discard: &str,
    copier: &str,
    image: Image,
    content: ImageContent,
) -> Copy {
    let folder = folder.path();
    let (from, to) = (folder.join("from.raw"), folder.join(format!("to.{format}")));
    let server = Server::start(folder, format, discard, &to).await;
    let line = Line::start(folder, &server.socket, image, content);
    match copier {
        "qemu-img" => {
            run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", text(&from), &line.uri()]).await;
        }
        _ => {
            // Zeroes among data are sent as data.
            run("nbdcopy", &["--flush", "--sparse=0", text(&from), &line.uri()]).await;
        }
    }
    server.stop().await;
    let same = run("qemu-img", &["compare", "-f", "raw", "-F", format, text(&from), text(&to)]).await;
    assert!(same.contains("identical"), "{same}");
    Copy { allocated: allocated(&to), sent: line.meter.sent_plain(), line }
}

async fn create(path: &Path, format: &str) {
    run("qemu-img", &["create", "-q", "-f", format, text(path), &DISK_BYTES.to_string()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_the_export_through_two_carriers() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image.raw");
    create(&image, "raw").await;
    let server = Server::start(folder.path(), "raw", "unmap", &image).await;
    let line = Line::start(folder.path(), &server.socket, Image::Unknown, ImageContent::Unknown);
    assert_eq!(run("nbdinfo", &["--size", &line.uri()]).await.trim(), DISK_BYTES.to_string());
    let shown = run("nbdinfo", &[&line.uri()]).await;
    assert!(shown.contains("using simple packets"), "{shown}");
    assert!(shown.contains("can_multi_conn: false"), "{shown}");
    let shown = run("qemu-img", &["info", "-f", "raw", &line.uri()]).await;
    assert!(shown.contains("1 GiB"), "{shown}");
    let shown = run("nbdinfo", &["--list", &line.uri()]).await;
    assert!(shown.contains("export=\"\""), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thin_disk_arrives_thin() {
    for (copier, format, discard) in [
        ("qemu-img", "raw", "unmap"),
        ("qemu-img", "raw", "ignore"),
        ("qemu-img", "qcow2", "unmap"),
        ("qemu-img", "qcow2", "ignore"),
        ("nbdcopy", "raw", "ignore"),
        ("nbdcopy", "qcow2", "unmap"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let data = make_disk(&folder.path().join("from.raw"));
        create(&folder.path().join(format!("to.{format}")), format).await;
        let copy = copy(&folder, format, discard, copier, Image::Zeroes, ImageContent::Zeroes).await;
        println!(
            "{copier} {format} {discard}: data {} KiB, allocated {} KiB ({:.3}), sent {} KiB, elided {} and {} KiB",
            data / KIB,
            copy.allocated / KIB,
            copy.allocated as f64 / data as f64,
            copy.sent / KIB,
            copy.line.nbd.elided_bytes() / KIB,
            copy.line.far_nbd.elided_bytes() / KIB
        );
        // All that is not data is told to be zero, and of none of it the server hears.
        assert!(copy.line.far_nbd.elided_bytes() >= DISK_BYTES - data - data / 50);
        assert!(copier != "nbdcopy" || copy.line.nbd.elided_bytes() >= 5 * MIB);
        // Each request was answered, and none waits for an answer.
        assert!(copy.line.nbd.answered() > 0 && copy.line.nbd.waiting() == 0);
        assert!(copy.sent <= data + data / 50, "{} bytes were sent", copy.sent);
        let needed = if format == "qcow2" { clusters_of_data(&folder.path().join("from.raw")) } else { data };
        assert!(copy.allocated <= needed + needed / 50 + MIB, "{copier} {format} {discard}: {}", copy.allocated);
    }
}

/// What a qcow2 image must allocate: it knows nothing smaller than a cluster.
fn clusters_of_data(path: &Path) -> u64 {
    let file = File::open(path).expect("there");
    let index = scan(&file, KEY);
    index.blocks() as u64 * 64 * KIB
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_spares_what_it_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("from.raw"), folder.path().join("to.raw"));
    let data = make_disk(&from);
    create(&to, "raw").await;
    let without = copy(&folder, "raw", "unmap", "qemu-img", Image::Zeroes, ImageContent::Zeroes).await.sent;
    // The copy is kept, and a fifth of its blocks is no longer what the disk holds.
    let partial = fs::OpenOptions::new().read(true).write(true).open(&to).expect("kept");
    let all = scan(&partial, KEY).blocks();
    // Whole blocks of the long files: qemu-img writes the short ones in less than blocks.
    let content = 12 * MIB + 3 * MIB + 256 * KIB;
    for at in (0..DISK_BYTES / (64 * KIB)).filter(|block| block % 5 == 0) {
        let mut block = vec![0; 64 * KIB as usize];
        partial.read_exact_at(&mut block, at * 64 * KIB).expect("read");
        if let Some(byte) = block.iter_mut().find(|byte| **byte != 0) {
            *byte ^= 0x80;
            partial.write_all_at(&block, at * 64 * KIB).expect("written");
        }
    }
    let index = ContentIndex::decode(&scan(&partial, KEY).encode()).expect("its own bytes");
    assert_eq!(index.blocks(), all);
    let with = copy(
        &folder,
        "raw",
        "unmap",
        "qemu-img",
        Image::Partial(index),
        ImageContent::Partial { key: KEY, data: None },
    )
    .await;
    println!(
        "without {} KiB, with a seed {} KiB ({:.3}), referenced {} KiB, allocated {} of {} KiB",
        without / KIB,
        with.sent / KIB,
        with.sent as f64 / without as f64,
        with.line.nbd.referenced_bytes() / KIB,
        with.allocated / KIB,
        data / KIB
    );
    assert!(with.sent * 3 <= without, "{} of {without} bytes were sent", with.sent);
    assert!(with.line.nbd.referenced_bytes() >= content * 4 / 5 && with.line.far_nbd.mismatches() == 0);
    assert!(with.sent + with.line.nbd.referenced_bytes() <= without + without / 50);
    assert_eq!(with.line.far_nbd.referenced_bytes(), with.line.nbd.referenced_bytes());
    // Referenced blocks keep what was allocated; the rest is as thin as ever.
    assert!(with.allocated <= data + data / 50 + MIB, "{} allocated", with.allocated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_changed_underneath_fails_the_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("from.raw"), folder.path().join("to.raw"));
    make_disk(&from);
    make_disk(&to);
    let index = scan(&File::open(&to).expect("there"), KEY);
    fs::OpenOptions::new()
        .write(true)
        .open(&to)
        .expect("there")
        .write_all_at(b"changed", 2 * MIB + 5)
        .expect("written");
    let server = Server::start(folder.path(), "raw", "unmap", &to).await;
    let line = Line::start(
        folder.path(),
        &server.socket,
        Image::Partial(index),
        ImageContent::Partial { key: KEY, data: None },
    );
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", text(&from), &line.uri()];
    let output = Command::new("qemu-img").args(convert).kill_on_drop(true).output();
    let output = tokio::time::timeout(DEADLINE, output).await.expect("done in time").expect("qemu-img starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("Input/output error"), "{stderr}");
    assert_eq!(line.far_nbd.mismatches(), 1);
}

/// A QEMU without a VM, that mirrors one raw image.
struct Mirror {
    commands: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Mirror {
    async fn start(image: &Path) -> Self {
        // Over its own input and output: who connects to a socket of QMP in the moment that it appears may not be heard.
        let mut process = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", text(image)))
            .args(["--chardev", "stdio,id=qmp,signal=off", "--monitor", "qmp"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("qemu-storage-daemon starts");
        let (commands, stdout) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let mut mirror = Self { commands, stdout: BufReader::new(stdout).lines(), _process: process };
        mirror.hear("QMP").await;
        mirror.run("qmp_capabilities", serde_json::json!({})).await;
        mirror
    }

    /// What it says next that has this word.
    async fn hear(&mut self, word: &str) -> serde_json::Value {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.stdout.next_line()).await.expect("it says it in time");
            let line = line.expect("it lives").expect("it lives");
            let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            assert!(event.get("error").is_none(), "{line}");
            if event.get(word).is_some() || event["event"] == word {
                return event;
            }
        }
    }

    async fn run(&mut self, command: &str, arguments: serde_json::Value) {
        let command = serde_json::json!({ "execute": command, "arguments": arguments });
        self.commands.write_all(command.to_string().as_bytes()).await.expect("it reads");
        self.hear("return").await;
    }

    /// As libvirt does it when it migrates a disk.
    async fn copy_to(&mut self, socket: &Path) {
        let server = serde_json::json!({ "type": "unix", "path": text(socket) });
        let target = serde_json::json!({ "driver": "nbd", "node-name": "target", "server": server });
        self.run("blockdev-add", target).await;
        let job = serde_json::json!({ "job-id": "copy", "device": "disk", "target": "target", "sync": "full" });
        self.run("blockdev-mirror", job).await;
        self.hear("BLOCK_JOB_READY").await;
        self.run("block-job-cancel", serde_json::json!({ "device": "copy" })).await;
        let ended = self.hear("BLOCK_JOB_COMPLETED").await;
        assert!(ended["data"].get("error").is_none(), "{ended}");
    }
}

/// Where an image may read as something else than zeroes.
async fn data_of(path: &Path, format: &str) -> Vec<(u64, u64)> {
    let map = run("qemu-img", &["map", "--output=json", "-f", format, text(path)]).await;
    let extents: Vec<serde_json::Value> = serde_json::from_str(&map).expect("JSON");
    let data = extents.iter().filter(|extent| extent["data"] == true && extent["zero"] == false);
    let number = |extent: &serde_json::Value, name: &str| extent[name].as_u64().expect("a number");
    data.map(|extent| (number(extent, "start"), number(extent, "start") + number(extent, "length"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_over_an_unfinished_copy_stays_thin() {
    for (format, discard) in [("raw", "ignore"), ("raw", "unmap"), ("qcow2", "ignore"), ("qcow2", "unmap")] {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from.raw"), folder.path().join(format!("to.{format}")));
        let data = make_disk(&from);
        create(&to, format).await;
        // Half of the long file, and something that the guest has erased since.
        for stale in ["write -P 7 1M 6M", "write -P 8 300M 300k"] {
            run("qemu-io", &["-f", format, "-c", stale, text(&to)]).await;
        }
        let map = data_of(&to, format).await;
        let index = ContentIndex::new(KEY);
        let content = ImageContent::Partial { key: KEY, data: Some(map) };
        let copy = copy(&folder, format, discard, "qemu-img", Image::Partial(index), content).await;
        let needed = if format == "qcow2" { clusters_of_data(&from) } else { data };
        // Zeroes take the place of what was there.
        assert!(copy.allocated <= needed + needed / 50 + MIB + 384 * KIB, "{format} {discard}: {}", copy.allocated);
        assert!(copy.line.far_nbd.elided_bytes() >= DISK_BYTES - data - data / 50 - MIB, "{format} {discard}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemus_mirror_arrives_thin_and_spares_what_is_held() {
    for discard in ["unmap", "ignore"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from.raw"), folder.path().join("to.raw"));
        let data = make_disk(&from);
        create(&to, "raw").await;
        for (round, most) in [(1, data + data / 50 + MIB), (2, data / 50)] {
            let (image, content) = if round == 1 {
                (Image::Zeroes, ImageContent::Zeroes)
            } else {
                let index = scan(&File::open(&to).expect("there"), KEY);
                (Image::Partial(index), ImageContent::Partial { key: KEY, data: Some(data_of(&to, "raw").await) })
            };
            let server = Server::start(folder.path(), "raw", discard, &to).await;
            let line = Line::start(folder.path(), &server.socket, image, content);
            Mirror::start(&from).await.copy_to(&line.socket).await;
            server.stop().await;
            let sent = line.meter.sent_plain();
            println!(
                "mirror {discard} {round}: data {} KiB, sent {} KiB, allocated {} KiB, elided {} and {} KiB, referenced {} KiB",
                data / KIB,
                sent / KIB,
                allocated(&to) / KIB,
                line.nbd.elided_bytes() / KIB,
                line.far_nbd.elided_bytes() / KIB,
                line.far_nbd.referenced_bytes() / KIB,
            );
            let same = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&from), text(&to)]).await;
            assert!(same.contains("identical"), "{same}");
            assert!(sent <= most, "{sent} bytes were sent");
            assert!(allocated(&to) <= data + data / 50 + MIB, "{discard} {round}: {} allocated", allocated(&to));
            assert_eq!(line.far_nbd.mismatches(), 0);
        }
    }
}
