//! The inside's end of tests: a program in a guest that does with a stream what the first line on it says.
//!
//! It listens on a port of vsock and on the same one of TCP. Whoever connects says one line, and what follows is up to that ([`verbs`]).
//! Each stream has a thread. A test that wants the guest to connect to it has the peer do so, and says its line on that stream.
//!
//! `orlop-story-peer watch DIRECTORY` does nothing of that: it prints the name of what comes to be in the directory, as it comes ([`watch`]);
//! `orlop-story-peer health PORT FILE` answers the health checks of gRPC ([`health`]).

mod disk;
mod health;
mod sockets;
mod verbs;
mod watch;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use nix::sys::resource::{Resource, setrlimit};

/// Where it is reached, by vsock and by TCP.
const PORT: u16 = 5000;
/// A thread's stack: there may be more than a thousand in a small guest.
const STACK: usize = 64 << 10;

/// More than there are streams.
const OPEN_FILES: u64 = 4096;

/// Whether streams that stand still may go on.
#[derive(Debug, Default)]
pub struct Gate {
    opened: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    /// Waits until it is opened the next time.
    pub fn wait(&self) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *opened;
        while *opened == before {
            opened = self
                .changed
                .wait(opened)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets all that wait go on.
    pub fn open(&self) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

/// Serves a stream in a thread of its own. When there can be none, the stream is closed.
pub fn serve(stream: File, gate: &Arc<Gate>) {
    let gate = Arc::clone(gate);
    let serve = move || {
        if let Err(error) = verbs::obey(&stream, &gate) {
            // The other end is told by the end of the stream; this is for who reads the console.
            eprintln!("peer: {error}");
        }
    };
    if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(serve) {
        eprintln!("peer: no thread for a stream: {error}");
    }
}

fn accept_all(what: &str, accept: impl Fn() -> io::Result<File>, gate: &Arc<Gate>) {
    loop {
        match accept() {
            Ok(stream) => serve(stream, gate),
            Err(error) => eprintln!("peer: accepting by {what}: {error}"),
        }
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["watch", directory] => return watch::tell(directory),
        ["health", port, file] => {
            let port = port.parse().map_err(io::Error::other)?;
            return health::serve(port, Path::new(file));
        }
        _ => {}
    }
    // Each stream is an open file, and the kernel's first process may have 1024.
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)?;
    let gate = Arc::new(Gate::default());
    let tcp = std::net::TcpListener::bind(("0.0.0.0", PORT))?;
    let vsock = sockets::listen(PORT.into())?;
    println!("the peer listens");
    let for_tcp = Arc::clone(&gate);
    thread::spawn(move || {
        let accept = || Ok(File::from(std::os::fd::OwnedFd::from(tcp.accept()?.0)));
        accept_all("TCP", accept, &for_tcp);
    });
    accept_all("vsock", || sockets::accept(&vsock), &gate);
    Ok(())
}
