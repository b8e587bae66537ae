//! The host's end of what stories do with the program `orlop-story-peer` in a guest: what can be said to it stands in its `verbs.rs`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use orlop_guest_images::noise::Noise;
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::setup::build;

use super::{Guest, Kernel, LIMIT};

/// Where the peer listens.
pub const PORT: u32 = 5000;
const CHUNK: usize = 64 << 10;

/// What a guest's script does to have the peer; it goes on when that has ended, which it does not.
pub const LISTEN: &str = "load vmw_vsock_virtio_transport; orlop-story-peer";

/// The program.
pub fn program() -> PathBuf {
    build::programs_directory().join("orlop-story-peer")
}

/// A guest with the peer in it.
pub struct Vm {
    pub guest: Guest,
    pub running: Running,
}

impl Vm {
    /// Starts it, its console to a file, and waits until the peer answers.
    pub fn start(kernel: Kernel, script: &str, arguments: &[&str]) -> Self {
        let script = format!("{script} {LISTEN}");
        let guest = Guest::with(kernel, &script, &[program()]);
        let console = format!("file={}", guest.path("console").display());
        let vsock = format!("socket={}", guest.path("vsock").display());
        let control = guest.path("control");
        let mut line = vec!["--console", &console, "--vsock", &vsock, "--api-socket"];
        line.push(control.to_str().unwrap());
        line.extend(arguments);
        let running = guest.start(&line);
        let vm = Vm { guest, running };
        vm.wait_for_peer();
        vm
    }

    pub fn wait_for_peer(&self) {
        let end = Instant::now() + LIMIT;
        while self.dial(PORT).is_err() {
            assert!(Instant::now() < end, "no peer: {}", self.said());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the guest wrote to its console.
    pub fn said(&self) -> String {
        let console = fs::read(self.guest.path("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    pub fn dial(&self, port: u32) -> io::Result<UnixStream> {
        dial(&self.guest.path("vsock"), port)
    }

    /// A stream on which this was said to the peer.
    pub fn say(&self, line: &str) -> UnixStream {
        let mut stream = self.dial(PORT).unwrap();
        writeln!(stream, "{line}").unwrap();
        stream
    }

    /// Says something that is answered by `ok`.
    pub fn does(&self, line: &str) -> String {
        answer(self.say(line)).unwrap_or_else(|why| panic!("{line}: {why}"))
    }
}

/// Connects to a port of a guest by the unix socket that stands for its vsock.
pub fn dial(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    patient(&stream)?;
    writeln!(stream, "CONNECT {port}")?;
    greeted(stream)
}

/// Whatever hangs fails.
pub fn patient(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}

/// Waits for the line by which the VMM says that the guest has taken the connection.
pub fn greeted(mut stream: UnixStream) -> io::Result<UnixStream> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    match line.starts_with(b"OK ") {
        true => Ok(stream),
        false => Err(io::Error::other(format!("{line:?}"))),
    }
}

/// Streams of both kinds.
pub trait Stream: Read + Write {
    /// Says that nothing more will be sent.
    fn end(&self) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for TcpStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// The peer's answer to the end, without the last line; an error is what went wrong.
pub fn answer(mut stream: impl Read) -> Result<String, String> {
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|error| format!("{text:?}, {error}"))?;
    match text.strip_suffix("ok\n") {
        Some(said) => Ok(said.to_owned()),
        None => Err(text),
    }
}

/// Sends so many bytes of a seed.
pub fn give(mut stream: impl Write, seed: u64, len: u64) -> io::Result<()> {
    let noise = Noise::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = &mut buffer[..CHUNK.min((len - at) as usize)];
        noise.fill(at, part);
        stream.write_all(part)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Takes so many bytes, which must be those of a seed.
pub fn take(mut stream: impl Read, seed: u64, len: u64) -> io::Result<()> {
    let noise = Noise::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let room = CHUNK.min((len - at) as usize);
        let count = stream.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::Error::other(format!("the end after {at} bytes")));
        }
        if let Some(place) = noise.first_difference(at, &buffer[..count]) {
            return Err(io::Error::other(format!("byte {place} is another one")));
        }
        at += count as u64;
    }
    Ok(())
}

/// Passes so many bytes both ways at once, on a stream on which `both SEED LEN` was said.
pub fn exchange<S: Stream + Sync>(stream: S, seed: u64, len: u64) -> Result<(), String>
where
    for<'s> &'s S: Read + Write,
{
    thread::scope(|scope| {
        let giver = scope.spawn(|| give(&stream, seed, len).and_then(|()| stream.end()));
        let taken = take(&stream, seed + 1, len).map_err(|error| format!("taking: {error}"));
        let given = giver.join().unwrap();
        taken?;
        given.map_err(|error| format!("giving: {error}"))
    })?;
    answer(stream).map(drop)
}
