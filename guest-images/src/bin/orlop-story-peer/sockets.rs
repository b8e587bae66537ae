//! vsock, and what all sockets have.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect,
    listen as listen_on, shutdown, socket,
};

/// Connections that may wait to be accepted: a thousand come at once.
const BACKLOG: i32 = 2048;
/// The host's context id.
const HOST: u32 = 2;

fn stream() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

/// Listens on a port of vsock.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let listener = stream()?;
    bind(
        listener.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_ANY, port),
    )?;
    listen_on(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Waits for a connection.
pub fn accept(listener: &OwnedFd) -> io::Result<File> {
    let stream = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just given us this descriptor.
    let stream = unsafe { OwnedFd::from_raw_fd(stream) };
    Ok(stream.into())
}

/// Connects to a port of the host by vsock.
pub fn call(port: u32) -> io::Result<File> {
    let stream = stream()?;
    connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(stream.into())
}

/// Says that nothing more will be sent.
pub fn end(stream: &File) -> io::Result<()> {
    Ok(shutdown(stream.as_raw_fd(), Shutdown::Write)?)
}
