//! Sends a running server requests that `api/server.json` allows or forbids, and checks the answers against it.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::programs::{self, Build, root};

/// The Schemathesis release used for the requests.
const VERSION: &str = "4.32.5";
/// Requests for each operation, and for each sequence of operations: several thousand in all, a minute. They are the
/// same in each run, on fast and slow machines, so that a new failure is caused by a change.
const REQUESTS: &str = "100";
/// The event stream has no end.
const STREAM: &str = "/api/v1/events";
/// How long the server may take to start.
const START_WITHIN: Duration = Duration::from_secs(20);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// A server with an empty state, ended when dropped.
struct Server {
    program: Child,
    folder: PathBuf,
    port: u16,
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("ferry-api-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("server.toml");
        let state = folder.join("state");
        fs::write(&config, format!("listen = \"127.0.0.1:{port}\"\nstate_dir = {:?}\n", state.display().to_string()))?;
        let mut command = Command::new(Build::Tested.folder().join("ferry-server"));
        command.args(["run", "--config"]).arg(&config).env("FERRY_LOG", "warn");
        let server = Self { program: command.spawn()?, folder, port };
        let until = Instant::now() + START_WITHIN;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < until, "ferry-server did not listen within {START_WITHIN:?}");
            std::thread::sleep(POLL_EVERY);
        }
        Ok(server)
    }

    fn token(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.folder.join("state/admin.token"))?.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether all answers match the document.
///
/// # Errors
/// The server does not start, or Schemathesis cannot be installed.
pub(crate) fn is_as_documented() -> anyhow::Result<bool> {
    let schemathesis = installed()?;
    programs::build_shipped(Build::Tested)?;
    let server = Server::start()?;
    eprintln!("asking the server what api/server.json allows and forbids: {REQUESTS} requests of each kind");
    let mut command = Command::new(schemathesis);
    command
        .current_dir(&server.folder)
        .arg("--config-file")
        .arg(root().join("api/schemathesis.toml"))
        .arg("run")
        .arg(root().join("api/server.json"))
        .args(["--url", &format!("https://127.0.0.1:{}", server.port), "--tls-verify", "false"])
        .args(["--header", &format!("Authorization: Bearer {}", server.token()?)])
        .args(["--exclude-path", STREAM, "--max-examples", REQUESTS, "--generation-deterministic"])
        .arg("--continue-on-failure");
    Ok(command.status()?.success())
}

/// The program, in a virtual environment in the user's cache.
fn installed() -> anyhow::Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).context("There is no $HOME")?;
    let folder = cache.join("ferry").join(format!("schemathesis-{VERSION}"));
    let program = folder.join("bin/schemathesis");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("installing schemathesis {VERSION}, which tests the REST API");
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder).status()?;
    ensure!(made.success(), "python3 -m venv failed");
    let package = format!("schemathesis=={VERSION}");
    let mut pip = Command::new(folder.join("bin/pip"));
    let got = pip.args(["install", "--quiet", "--disable-pip-version-check", &package]).status()?;
    ensure!(got.success(), "{package} could not be installed");
    Ok(program)
}
