//! The front end against the real virtiofsd, and against what is none.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::test_driver::{PATIENCE, TestQueue, TestTransport};

const RAM: usize = 0x100000;
const DATA: u64 = 0x40000;

/// A running virtiofsd, killed at its end.
struct Virtiofsd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Virtiofsd {
    /// Starts the one that this project's testbed builds; `None`, said aloud, when there is none.
    fn start() -> Option<Self> {
        let cache = std::env::var_os("ORLOP_CACHE").map_or_else(
            || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/orlop"),
            PathBuf::from,
        );
        let program = cache.join("bin/virtiofsd");
        if !program.exists() {
            println!("skipped: there is no {}", program.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        // It is listened to before the server runs: a socket's file is there before anybody listens, and then nobody can connect.
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let child = Command::new(program)
            .args(["--sandbox", "none", "--log-level", "error", "--fd", "0"])
            .arg("--shared-dir")
            .arg(shared)
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        Some(Virtiofsd { child, dir })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// RAM in a file, which another process can map.
fn shared_ram() -> Arc<GuestMemory> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(RAM as u64).unwrap();
    let range = (GuestAddress(0), RAM, Some(FileOffset::new(file, 0)));
    Arc::new(crate::memory::backed([range]).unwrap())
}

/// The driver's side of a started device.
struct Guest {
    urgent: TestQueue,
    requests: TestQueue,
    transport: TestTransport,
}

impl Guest {
    fn start(fs: &mut Fs, memory: &Arc<GuestMemory>) -> Result<Self, StartError> {
        let guest = Guest {
            urgent: TestQueue::new(memory, 0x1000, 128, true),
            requests: TestQueue::new(memory, 0x8000, 1024, true),
            transport: TestTransport::new(),
        };
        let active = guest
            .transport
            .active(u64::MAX, &[&guest.urgent, &guest.requests]);
        fs.start(active)?;
        Ok(guest)
    }

    /// FUSE_INIT: what a guest says first. The answer has the protocol's version.
    fn fuse_init(&mut self) {
        const IN: u64 = DATA;
        const OUT: u64 = DATA + 0x1000;
        let memory = self.requests.memory.clone();
        let words = [
            // The header: length, FUSE_INIT, unique id, node, uid and gid, pid and padding.
            104u32, 26, 0x1234, 0, 0, 0, 0, 0, 0, 0, // The request: 7.38, read ahead, flags.
            7, 38, 0x10000, 0,
        ];
        memory.write_slice(&[0; 104], GuestAddress(IN)).unwrap();
        memory.write_slice(&[0; 80], GuestAddress(OUT)).unwrap();
        for (i, word) in words.into_iter().enumerate() {
            let at = GuestAddress(IN + 4 * i as u64);
            memory.write_obj(word, at).unwrap();
        }
        let buffers = [
            (IN, 40, false),
            (IN + 40, 64, false),
            (OUT, 16, true),
            (OUT + 16, 64, true),
        ];
        let head = self.requests.add(&buffers).unwrap();
        self.requests.kick();
        assert_eq!(self.requests.wait_used(), (head, 80));
        let word = |i: u64| -> u32 { memory.read_obj(GuestAddress(OUT + 4 * i)).unwrap() };
        assert_eq!((word(0), word(1), word(2)), (80, 0, 0x1234));
        assert_eq!(word(4), 7, "the protocol's version");
    }
}

#[test]
fn virtiofsd_serves_what_it_is_handed_again_and_again() {
    let Some(server) = Virtiofsd::start() else {
        return;
    };
    let mut fs = Fs::new("share", Source::Socket(server.socket())).unwrap();
    assert_eq!(fs.features(), F_RING_INDIRECT_DESC | F_RING_EVENT_IDX);
    for _ in 0..3 {
        let mut guest = Guest::start(&mut fs, &shared_ram()).unwrap();
        guest.fuse_init();
        fs.stop();
        assert!(!guest.transport.faulted());
        // It is let go of: nothing is taken any more.
        guest.requests.add(&[(DATA, 40, false)]).unwrap();
        guest.requests.kick();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(guest.requests.used_index(), 1);
    }
}

#[test]
fn a_server_that_dies_is_a_fault_of_the_device() {
    let Some(mut server) = Virtiofsd::start() else {
        return;
    };
    let mut fs = Fs::new("share", Source::Socket(server.socket())).unwrap();
    let memory = shared_ram();
    let mut guest = Guest::start(&mut fs, &memory).unwrap();
    guest.fuse_init();
    server.kill();
    guest.transport.expect_fault();
    fs.stop();
    let error = Guest::start(&mut fs, &memory).err().unwrap();
    assert!(matches!(error, StartError::Backend { .. }), "{error}");
}

#[test]
fn memory_is_the_guests_alone_when_the_device_has_stopped() {
    let Some(server) = Virtiofsd::start() else {
        return;
    };
    let mut fs = Fs::new("share", Source::Socket(server.socket())).unwrap();
    for _ in 0..2 {
        let memory = shared_ram();
        let file = memory.iter().next().unwrap().file_offset().unwrap();
        // As a process that has mapped it shows it.
        let inode = format!(" {} ", file.file().metadata().unwrap().ino());
        let maps = format!("/proc/{}/maps", server.child.id());
        let is_mapped = || std::fs::read_to_string(&maps).unwrap().contains(&inode);
        let mut guest = Guest::start(&mut fs, &memory).unwrap();
        guest.fuse_init();
        assert!(is_mapped());
        fs.stop();
        assert!(!is_mapped());
    }
}

#[test]
fn memory_that_cannot_be_shared_is_refused() {
    let Some(server) = Virtiofsd::start() else {
        return;
    };
    let mut fs = Fs::new("share", Source::Socket(server.socket())).unwrap();
    let memory = crate::devices::virtio::test_driver::ram(RAM);
    let error = Guest::start(&mut fs, &memory).err().unwrap();
    assert!(matches!(error, StartError::Backend { .. }), "{error}");
    // And nothing is left half done.
    Guest::start(&mut fs, &shared_ram()).unwrap().fuse_init();
}

#[test]
fn a_driver_without_interrupts_is_served() {
    let Some(server) = Virtiofsd::start() else {
        return;
    };
    let mut fs = Fs::new("share", Source::Socket(server.socket())).unwrap();
    let memory = shared_ram();
    let (urgent, mut requests) = (
        TestQueue::new(&memory, 0x1000, 128, false),
        TestQueue::new(&memory, 0x8000, 1024, false),
    );
    let mut active = TestTransport::new().active(0, &[&urgent, &requests]);
    for queue in active.queues.iter_mut().flatten() {
        queue.interrupt = crate::devices::virtio::Interrupt::none();
    }
    fs.start(active).unwrap();
    memory.write_obj(40u32, GuestAddress(DATA)).unwrap();
    // FUSE_DESTROY.
    memory.write_obj(38u32, GuestAddress(DATA + 4)).unwrap();
    let buffers = [(DATA, 40, false), (DATA + 0x100, 16, true)];
    let head = requests.add(&buffers).unwrap();
    requests.kick();
    assert_eq!(requests.wait_used().0, head);
    assert!(requests.interrupt.read().is_err());
}

#[test]
fn a_missing_queue_is_an_error() {
    let Some(server) = Virtiofsd::start() else {
        return;
    };
    let mut fs = Fs::new("share", Source::Socket(server.socket())).unwrap();
    let memory = shared_ram();
    let urgent = TestQueue::new(&memory, 0x1000, 128, false);
    let error = fs
        .start(TestTransport::new().active(0, &[&urgent]))
        .unwrap_err();
    assert!(matches!(error, StartError::MissingQueue(1)), "{error}");
}

#[test]
fn where_nobody_listens_the_error_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none");
    let error = Fs::new("share", Source::Socket(path.clone()))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("virtiofsd") && error.contains("none"),
        "{error}"
    );
    drop(UnixListener::bind(&path).unwrap());
    let error = Fs::new("share", Source::Socket(path)).err().unwrap();
    assert!(matches!(
        error,
        CreateError::Connect(ConnectError::Connect { .. })
    ));
}

#[test]
fn what_speaks_something_else_is_refused_and_what_says_nothing_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = |bytes: &'static [u8]| {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            use std::io::Write;
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(bytes).unwrap();
            // Until they hang up.
            let _ = stream.read_to_end(&mut Vec::new());
        })
    };
    // Nobody lets us in.
    let full = dir.path().join("full");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&full).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _first = UnixStream::connect(&full).unwrap();
    let time = Duration::from_millis(200);
    let error = Backend::connect_within(full, 2, time).err().unwrap();
    assert!(matches!(error, ConnectError::Connect { .. }), "{error}");

    for bytes in [b"".as_slice(), b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let peer = answer(bytes);
        let begin = Instant::now();
        let error = Backend::connect_within(path.clone(), 2, time)
            .err()
            .unwrap();
        assert!(matches!(error, ConnectError::Negotiate { .. }), "{error}");
        assert!(begin.elapsed() < PATIENCE);
        peer.join().unwrap();
    }
}

#[test]
fn the_tag_fits_or_is_refused() {
    let config = config("orlop").unwrap();
    assert_eq!(&config[..6], b"orlop\0");
    assert_eq!(config[36..], 1u32.to_le_bytes());
    assert!(super::config(&"x".repeat(36)).is_some());
    for tag in ["", &"x".repeat(37), "a\0b"] {
        assert!(super::config(tag).is_none(), "{tag:?}");
    }
}
