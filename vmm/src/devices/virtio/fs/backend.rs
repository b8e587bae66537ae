//! The program behind the vhost-user socket: what it is told, in which order, and within which time.
//!
//! It is a peer that may be wrong, stuck or gone. Every exchange has a time limit, after which the connection is cut, so no vCPU
//! waits for it longer than that.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::{ActiveQueue, F_VERSION_1, GuestMemory, StartError};
use crate::memory;

/// How long one exchange may take: connecting, starting, stopping.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the first one may take with a backend that begins at the same time.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// What the protocol itself calls a feature among the device's.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error(
        "cannot connect to the vhost-user socket {path}: is virtiofsd running with this --socket-path?"
    )]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor could not be had.
    #[error("cannot watch {place}")]
    System {
        /// What.
        place: Place,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// It did not answer as a vhost-user backend does, or not in time.
    #[error("{place} does not answer as a vhost-user backend: {what}")]
    Negotiate {
        /// What.
        place: Place,
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        #[source]
        source: vhost::Error,
    },
    /// It can not do what we need.
    #[error("{place} lacks {what}")]
    Lacks {
        /// What.
        place: Place,
        /// What it lacks.
        what: &'static str,
    },
}

/// Where a backend is, for people.
#[derive(Clone, Debug)]
pub enum Place {
    /// It listens there.
    Socket(PathBuf),
    /// It was started for the file system of this tag.
    Own(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Socket(path) => write!(f, "what listens at {}", path.display()),
            Place::Own(tag) => write!(f, "the virtiofsd of {tag}"),
        }
    }
}

/// A connected backend.
pub struct Backend {
    frontend: Frontend,
    stream: UnixStream,
    /// The features that it offers.
    features: u64,
    /// What it is handed in place of guest memory that is not to be kept for it.
    parking: GuestMemory,
}

impl Backend {
    /// Connects to the backend that listens at `path`, and agrees with it on how to speak about `queues` queues.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(path: PathBuf, queues: usize) -> Result<Self, ConnectError> {
        Self::connect_within(path, queues, PATIENCE)
    }

    pub(super) fn connect_within(
        path: PathBuf,
        queues: usize,
        time: Duration,
    ) -> Result<Self, ConnectError> {
        match reach(&path, time) {
            Ok(stream) => Self::over(stream, Place::Socket(path), queues, time),
            Err(source) => Err(ConnectError::Connect { path, source }),
        }
    }

    /// Agrees with a backend that is connected already. It was started a moment ago.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connected(stream: UnixStream, tag: &str, queues: usize) -> Result<Self, ConnectError> {
        Self::over(stream, Place::Own(tag.into()), queues, START_PATIENCE)
    }

    fn over(
        stream: UnixStream,
        place: Place,
        queues: usize,
        time: Duration,
    ) -> Result<Self, ConnectError> {
        let system = |source| ConnectError::System {
            place: place.clone(),
            source,
        };
        let ours = stream.try_clone().map_err(system)?;
        let mut frontend = Frontend::from_stream(ours, queues as u64);
        let features = within(&stream, time, || negotiate(&mut frontend, queues))
            .map_err(system)?
            .map_err(|refusal| match refusal {
                Refusal::Answer { what, source } => ConnectError::Negotiate {
                    place: place.clone(),
                    what,
                    source,
                },
                Refusal::Lacks(what) => ConnectError::Lacks {
                    place: place.clone(),
                    what,
                },
            })?;
        Ok(Backend {
            frontend,
            stream,
            features,
            parking: parking().map_err(system)?,
        })
    }

    /// The device's features that it offers.
    pub fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    /// The connection, to be watched for its end.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Hands it guest memory and queues, and lets it begin.
    ///
    /// # Errors
    /// What it did not take. Nothing runs then.
    pub fn start(
        &mut self,
        memory: &GuestMemory,
        features: u64,
        queues: &[ActiveQueue],
    ) -> Result<(), StartError> {
        let frontend = &mut self.frontend;
        // Its own feature is agreed upon with the device's, and is what makes queues wait for being enabled.
        let features = features & self.features | PROTOCOL_FEATURES;
        let started = within(&self.stream, PATIENCE, || {
            start(frontend, memory, features, queues)
        });
        let result = match started {
            Ok(result) => result,
            Err(source) => Err(StartError::System {
                what: "watch the vhost-user backend",
                source,
            }),
        };
        if result.is_err() {
            self.stop(queues.len());
        }
        result
    }

    /// Lets it end: when this returns, it touches neither queues nor memory, and has let go of both, unless it is stuck, and then the
    /// connection is cut. What it kept of guest memory would be there twice once the guest boots again.
    pub fn stop(&mut self, queues: usize) {
        let (frontend, parking) = (&mut self.frontend, &self.parking);
        let stopped = within(&self.stream, PATIENCE, || {
            for index in 0..queues {
                // A backend answers this one when it has stopped working on the queue.
                frontend.get_vring_base(index)?;
                frontend.set_vring_enable(index, false)?;
            }
            frontend.set_mem_table(&regions(parking)?)?;
            Ok::<_, vhost::Error>(())
        });
        match stopped {
            Ok(Ok(())) => {}
            // It is gone, or never got as far as having these queues.
            Ok(Err(error)) => log::debug!("vhost-user: while stopping: {error}"),
            Err(error) => log::warn!("vhost-user: while stopping: {error}"),
        }
    }
}

/// Why a backend is not one for us.
enum Refusal {
    Answer {
        what: &'static str,
        source: vhost::Error,
    },
    Lacks(&'static str),
}

/// Says for `map_err` what was asked.
fn asked(what: &'static str) -> impl Fn(vhost::Error) -> Refusal {
    move |source| Refusal::Answer { what, source }
}

fn negotiate(frontend: &mut Frontend, queues: usize) -> Result<u64, Refusal> {
    frontend.set_owner().map_err(asked("its owner"))?;
    let features = frontend.get_features().map_err(asked("its features"))?;
    if features & F_VERSION_1 == 0 {
        return Err(Refusal::Lacks("virtio 1 (VIRTIO_F_VERSION_1)"));
    }
    if features & PROTOCOL_FEATURES == 0 {
        return Err(Refusal::Lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
    }
    let offered = frontend
        .get_protocol_features()
        .map_err(asked("its protocol features"))?;
    let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    if !offered.contains(wanted) {
        return Err(Refusal::Lacks("the protocol features MQ and REPLY_ACK"));
    }
    frontend
        .set_protocol_features(wanted)
        .map_err(asked("to take protocol features"))?;
    // From here on every message is answered, so what it did not take is known at once.
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let has = frontend.get_queue_num().map_err(asked("its queues"))?;
    if has < queues as u64 {
        return Err(Refusal::Lacks("as many queues as we need"));
    }
    Ok(features)
}

fn start(
    frontend: &mut Frontend,
    memory: &GuestMemory,
    features: u64,
    queues: &[ActiveQueue],
) -> Result<(), StartError> {
    let backend = |what| move |source| StartError::Backend { what, source };
    frontend
        .set_features(features)
        .map_err(backend("the features"))?;
    let regions = regions(memory).map_err(backend("guest memory, which is not in a file"))?;
    frontend
        .set_mem_table(&regions)
        .map_err(backend("guest memory"))?;
    for (index, active) in queues.iter().enumerate() {
        let layout = active.queue.layout();
        // Places in our memory, which it finds in the regions that it was told of.
        let place = |addr: GuestAddress| {
            memory
                .get_host_address(addr)
                .map(|pointer| pointer as u64)
                .map_err(|error| StartError::System {
                    what: "find a ring in memory",
                    source: io::Error::other(error),
                })
        };
        let vring = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: place(layout.descriptors)?,
            used_ring_addr: place(layout.device)?,
            avail_ring_addr: place(layout.driver)?,
            log_addr: None,
        };
        // Without an interrupt it signals an event that nobody hears.
        let silent;
        let call = match active.interrupt.fd() {
            Some(fd) => fd,
            None => {
                silent =
                    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
                        StartError::System {
                            what: "create an eventfd",
                            source,
                        }
                    })?;
                &silent
            }
        };
        frontend
            .set_vring_num(index, layout.size)
            .map_err(backend("a queue's size"))?;
        frontend
            .set_vring_addr(index, &vring)
            .map_err(backend("a queue's place"))?;
        frontend
            .set_vring_base(index, 0)
            .map_err(backend("a queue's beginning"))?;
        frontend
            .set_vring_call(index, call)
            .map_err(backend("a queue's interrupt"))?;
        frontend
            .set_vring_kick(index, &active.kick)
            .map_err(backend("a queue's kick"))?;
    }
    for index in 0..queues.len() {
        frontend
            .set_vring_enable(index, true)
            .map_err(backend("that a queue is enabled"))?;
    }
    Ok(())
}

fn regions(memory: &GuestMemory) -> vhost::Result<Vec<VhostUserMemoryRegionInfo>> {
    memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region.mapping()))
        .collect()
}

/// A page of memory in a file: the protocol has no word for no memory at all.
fn parking() -> io::Result<GuestMemory> {
    const SIZE: usize = 4096;
    let file = memory::file(SIZE as u64)?;
    let range = (GuestAddress(0), SIZE, Some(FileOffset::new(file, 0)));
    memory::backed([range]).map_err(io::Error::other)
}

/// Connects, which takes time where a listener has more callers than it lets in.
fn reach(path: &Path, time: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(time))?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_write_timeout(None)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Does an exchange over `stream`, and cuts it when it takes too long, which ends the exchange. (A time limit on the socket
/// itself would not: the crate tries again.)
///
/// # Errors
/// When no thread can be had to watch over it; nothing was done then.
fn within<T>(stream: &UnixStream, time: Duration, exchange: impl FnOnce() -> T) -> io::Result<T> {
    thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        thread::Builder::new()
            .name("vhost-user-time".into())
            .spawn_scoped(scope, move || {
                if wait.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                    log::warn!("vhost-user: no answer within {time:?}: the connection is cut");
                    let _ = stream.shutdown(Shutdown::Both);
                }
            })?;
        let result = exchange();
        drop(done);
        Ok(result)
    })
}
