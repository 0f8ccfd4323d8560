//! The few system calls that the standard library does not provide.
#![allow(unsafe_code)]

use std::{ffi::CString, fs::File, net::Ipv4Addr, os::fd::AsRawFd as _};

/// Mounts a kernel file system.
pub(crate) fn mount(source: &str, target: &str, kind: &str) {
    let _ = std::fs::create_dir_all(target);
    let text = |text: &str| CString::new(text).expect("no NUL in our own names");
    let (source, path, kind) = (text(source), text(target), text(kind));
    // SAFETY: all strings live through the call.
    let result = unsafe { libc::mount(source.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result < 0 {
        println!("ticker: mount {target}: {}", std::io::Error::last_os_error());
    }
}

/// Makes the mount at the working directory the root file system.
pub(crate) fn become_root_here() -> std::io::Result<()> {
    // SAFETY: all strings are constants.
    let result = unsafe {
        libc::mount(c".".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_MOVE, std::ptr::null())
            | libc::chroot(c".".as_ptr())
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { std::env::set_current_dir("/") }
}

/// Loads a kernel module.
pub(crate) fn load_module(path: &str) {
    let outcome = File::open(path).and_then(|file| {
        // SAFETY: the descriptor is open, the options are an empty string.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    });
    if let Err(error) = outcome {
        println!("ticker: module {path}: {error}");
    }
}

/// Reports a crash to the panic device. QEMU then stops the guest; without such a device nothing happens.
pub(crate) fn crash() {
    /// The port of QEMU's ISA panic device, and the value that means a crash (QEMU's `docs/specs/pvpanic.rst`).
    const PANIC_PORT: u16 = 0x505;
    const CRASHED: u8 = 1;
    // SAFETY: the port belongs to the panic device or to no device; the instruction accesses no memory and no flags.
    let result = unsafe {
        let result = libc::ioperm(PANIC_PORT.into(), 1, 1);
        if result == 0 {
            std::arch::asm!("out dx, al", in("dx") PANIC_PORT, in("al") CRASHED, options(nomem, nostack, preserves_flags));
        }
        result
    };
    if result < 0 {
        println!("ticker: it cannot crash: {}", std::io::Error::last_os_error());
    }
}

/// Gives an interface an address in a /24 network, and activates it.
pub(crate) fn configure_network(name: &str, ip: Ipv4Addr) {
    // SAFETY: the request is a plain structure, all zero is valid; the name fits with its NUL; the union's fields are
    // those that each call reads or writes.
    let result = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *place = byte as libc::c_char;
        }
        let address = |octets: [u8; 4]| {
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from_ne_bytes(octets);
            std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address)
        };
        request.ifr_ifru.ifru_addr = address(ip.octets());
        let mut result = libc::ioctl(socket, libc::SIOCSIFADDR as _, &request);
        request.ifr_ifru.ifru_addr = address([255, 255, 255, 0]);
        result |= libc::ioctl(socket, libc::SIOCSIFNETMASK as _, &request);
        let [a, b, c, _] = ip.octets();
        request.ifr_ifru.ifru_addr = address([a, b, c, 255]);
        libc::ioctl(socket, libc::SIOCSIFBRDADDR as _, &request);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        result |= libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &request);
        libc::close(socket);
        result
    };
    if result < 0 {
        println!("ticker: network {name}: {}", std::io::Error::last_os_error());
    }
}
