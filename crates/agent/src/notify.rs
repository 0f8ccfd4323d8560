//! Reports the agent's state to systemd (`Type=notify`): a datagram to the socket that it names.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use ferry_core::error::chain;
use tracing::warn;

/// The socket on which systemd listens. Not set if something else runs the agent.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The state of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its API listens.
    Ready,
    /// It is stopping; carriers continue.
    Stopping,
}

/// Reports the state, if systemd asked for it. A failure is logged: systemd then stops the agent at its own time limit.
pub fn report(standing: Standing) {
    let Some(socket) = env::var_os(VARIABLE) else { return };
    if let Err(error) = send(&socket, standing) {
        warn!(socket = %socket.display(), error = %chain(&error), "systemd could not be told how the agent stands");
    }
}

fn send(socket: &OsStr, standing: Standing) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let text: &[u8] = match standing {
        Standing::Ready => b"READY=1",
        Standing::Stopping => b"STOPPING=1",
    };
    UnixDatagram::unbound()?.send_to_addr(text, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_hear_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("ferry-test-{}", std::process::id());
        let at_path = UnixDatagram::bind(&path).expect("bound");
        let abstracted = SocketAddr::from_abstract_name(&name).expect("an address");
        let abstracted = UnixDatagram::bind_addr(&abstracted).expect("bound");
        let heard = |socket: &UnixDatagram| {
            let mut buffer = [0; 32];
            let length = socket.recv(&mut buffer).expect("heard");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        send(path.as_os_str(), Standing::Ready).expect("sent");
        assert_eq!(heard(&at_path), "READY=1");
        send(OsStr::new(&format!("@{name}")), Standing::Stopping).expect("sent");
        assert_eq!(heard(&abstracted), "STOPPING=1");
        send(folder.path().join("nobody").as_os_str(), Standing::Ready).expect_err("nobody listens");
    }
}
