//! The loopback of a pod's namespace: who dials any port there is to reach the same port of the guest's loopback, as
//! `kubectl port-forward` wants it.
//!
//! Nobody in the namespace listens, and which ports will be dialled is not known. So there is one listening socket for each protocol, and
//! the kernel is told to hand it every connection, by a program of eBPF where it looks for a socket (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9).
//! An accepted connection still has the address that was dialled. The program is gone with its link, which is a descriptor.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The listening sockets of a namespace, which get all connections there for as long as this value is kept.
#[derive(Debug)]
pub struct Localhost {
    /// For IPv4, and for IPv6 where there is that.
    pub listeners: Vec<TcpListener>,
    /// With it goes the program.
    _link: OwnedFd,
}

/// Listens in `namespace`, which is that of the calling thread.
///
/// # Errors
/// What the system says: such programs may be forbidden, or not known to it.
pub fn listen(namespace: &File) -> io::Result<Localhost> {
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok();
    let sockets = map()?;
    put(&sockets, SLOT_V4, v4.as_raw_fd())?;
    if let Some(v6) = &v6 {
        put(&sockets, SLOT_V6, v6.as_raw_fd())?;
    }
    let program = load(&program(sockets.as_raw_fd()))?;
    let link = attach(&program, namespace)?;
    let listeners = std::iter::once(v4).chain(v6).collect::<Vec<_>>();
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    Ok(Localhost {
        listeners,
        _link: link,
    })
}

// Commands and numbers of bpf(2), as linux/bpf.h has them.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;
const FUNC_MAP_LOOKUP_ELEM: i32 = 1;
const FUNC_SK_RELEASE: i32 = 86;
const FUNC_SK_ASSIGN: i32 = 124;
const PSEUDO_MAP_FD: u8 = 1;
const SK_PASS: i32 = 1;

/// Where in the map the socket of each protocol is.
const SLOT_V4: u32 = 0;
const SLOT_V6: u32 = 1;

/// An instruction (struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// The destination below, the source above.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// The program: takes the socket of the connection's protocol from the map, and assigns the connection to it.
fn program(map: RawFd) -> [Instruction; 20] {
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x62;
    const LOAD_LONG: u8 = 0x18;
    const IF_EQUAL: u8 = 0x15;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    // In struct bpf_sk_lookup.
    const FAMILY: i16 = 8;
    const KEY: i16 = -4;
    [
        instruction(MOVE, 6, 1, 0, 0),
        instruction(STORE, 10, 0, KEY, SLOT_V4.cast_signed()),
        instruction(LOAD, 2, 6, FAMILY, 0),
        instruction(IF_EQUAL, 2, 0, 1, libc::AF_INET),
        instruction(STORE, 10, 0, KEY, SLOT_V6.cast_signed()),
        instruction(LOAD_LONG, 1, PSEUDO_MAP_FD, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, KEY as i32),
        instruction(CALL, 0, 0, 0, FUNC_MAP_LOOKUP_ELEM),
        // No such socket: to the end.
        instruction(IF_EQUAL, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, FUNC_SK_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, FUNC_SK_RELEASE),
        // What was not assigned, such as a datagram, goes its usual way.
        instruction(SET, 0, 0, 0, SK_PASS),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Arguments of bpf(2): a part of union bpf_attr each, with what lies behind taken for zero.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

fn map() -> io::Result<OwnedFd> {
    let argument = MapCreate {
        kind: MAP_TYPE_SOCKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: 2,
    };
    // SAFETY: the argument is of this command, and points to nothing.
    let fd = unsafe { bpf(MAP_CREATE, &argument) }?;
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn put(map: &OwnedFd, slot: u32, socket: RawFd) -> io::Result<()> {
    let socket = number(socket);
    let argument = MapUpdate {
        map: number(map.as_raw_fd()),
        _padding: 0,
        key: &raw const slot as u64,
        value: &raw const socket as u64,
        flags: 0,
    };
    // SAFETY: the argument is of this command; its key and value are four bytes each, as the map's are, and live through the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &argument) }?;
    Ok(())
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"";
    let argument = ProgramLoad {
        kind: PROG_TYPE_SK_LOOKUP,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"orlop_localhost\0",
        interface: 0,
        expected_attach: ATTACH_SK_LOOKUP,
    };
    // SAFETY: the argument is of this command; the instructions are as many as it says, the license ends with a zero byte, and both
    // live through the call.
    let fd = unsafe { bpf(PROG_LOAD, &argument) }?;
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(program: &OwnedFd, namespace: &File) -> io::Result<OwnedFd> {
    let argument = LinkCreate {
        program: number(program.as_raw_fd()),
        target: number(namespace.as_raw_fd()),
        attach: ATTACH_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: the argument is of this command, and points to nothing.
    let fd = unsafe { bpf(LINK_CREATE, &argument) }?;
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls bpf(2). Descriptors that it makes are closed on exec.
///
/// # Safety
/// `argument` must be the part of union bpf_attr that is the command's, and what it points to must be as the command takes it.
unsafe fn bpf<T>(command: libc::c_int, argument: &T) -> io::Result<RawFd> {
    let size = std::mem::size_of::<T>();
    // SAFETY: the caller's.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *argument, size) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(done).map_err(io::Error::other)
}

/// A descriptor that is open has no sign.
fn number(fd: RawFd) -> u32 {
    fd.unsigned_abs()
}
