//! virtio-fs (virtio 1.2, 5.11): a directory of the host, served by a program of its own (virtiofsd) over vhost-user.
//!
//! What is here is the front end: it says to the guest what there is, and hands guest memory and the queues to the [`backend`],
//! which works on them without us. We only notice when it is gone.

mod backend;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use vmm_sys_util::epoll::EventSet;

use self::backend::Backend;
pub use self::backend::ConnectError;
use super::worker::{Events, Wake, Worker};
use super::{
    Active, ActiveQueue, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, Fault, Kind, StartError,
};

/// The length of a tag in the configuration space (virtio 1.2, 5.11.4).
pub const TAG_LEN: usize = 36;
/// Request queues. More of them would be more here and in [`QUEUE_SIZES`], for a backend that has them; virtiofsd has one.
const REQUEST_QUEUES: u32 = 1;
/// The queue for urgent requests, and the request queues. Linux makes its requests as large as fit: 1024 entries are enough for
/// 1 MiB, which is the most that it uses anyway.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// The device.
pub struct Fs {
    tag: String,
    config: [u8; TAG_LEN + 4],
    backend: Backend,
    running: Option<Running>,
}

/// Where its backend is.
#[derive(Debug)]
pub enum Source {
    /// It listens there.
    Socket(PathBuf),
    /// It was started for this device, and is at the other end.
    Connected(UnixStream),
}

/// What there is while the backend works.
struct Running {
    /// Their events, as long as the backend has copies of them.
    queues: Vec<ActiveQueue>,
    /// Notices when the backend is gone.
    watch: Worker<()>,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It is what the guest mounts by.
    #[error("the virtio-fs tag {0:?} must have 1 to {TAG_LEN} bytes and no NUL")]
    Tag(String),
    /// No backend.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// The backend has closed its connection.
#[derive(Debug, thiserror::Error)]
#[error("the vhost-user backend (virtiofsd) is gone")]
struct Gone;

impl Fs {
    /// A file system that the guest mounts by `tag`, served by the vhost-user backend at `source`. Idle.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn new(tag: &str, source: Source) -> Result<Self, CreateError> {
        let config = config(tag).ok_or_else(|| CreateError::Tag(tag.into()))?;
        let queues = QUEUE_SIZES.len();
        let backend = match source {
            Source::Socket(path) => Backend::connect(path, queues)?,
            Source::Connected(stream) => Backend::connected(stream, tag, queues)?,
        };
        Ok(Fs {
            tag: tag.into(),
            config,
            backend,
            running: None,
        })
    }
}

/// struct virtio_fs_config (virtio 1.2, 5.11.4); `None` for a tag that does not fit.
fn config(tag: &str) -> Option<[u8; TAG_LEN + 4]> {
    if tag.is_empty() || tag.len() > TAG_LEN || tag.contains('\0') {
        return None;
    }
    let padding = std::iter::repeat_n(0, TAG_LEN - tag.len());
    let fields = tag
        .bytes()
        .chain(padding)
        .chain(REQUEST_QUEUES.to_le_bytes());
    let mut config = [0; TAG_LEN + 4];
    for (place, byte) in config.iter_mut().zip(fields) {
        *place = byte;
    }
    Some(config)
}

impl Device for Fs {
    fn kind(&self) -> Kind {
        Kind::FileSystem
    }

    fn features(&self) -> u64 {
        self.backend.features() & (F_RING_INDIRECT_DESC | F_RING_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn tag(&self) -> Option<&str> {
        Some(&self.tag)
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        let queues = (0..QUEUE_SIZES.len())
            .map(|index| active.take_queue(index))
            .collect::<Result<Vec<_>, _>>()?;
        let stream = self
            .backend
            .stream()
            .try_clone()
            .map_err(|source| StartError::System {
                what: "watch the vhost-user backend",
                source,
            })?;
        self.backend
            .start(&active.memory, active.features, &queues)?;
        let fault = active.fault;
        let watch = Worker::spawn("virtio-fs", move |events| watch(events, &stream, &fault));
        match watch {
            Ok(watch) => {
                self.running = Some(Running { queues, watch });
                Ok(())
            }
            Err(error) => {
                self.backend.stop(queues.len());
                Err(error)
            }
        }
    }

    fn stop(&mut self) {
        if let Some(Running { queues, watch }) = self.running.take() {
            // First, lest a connection that is cut on the way counts as a fault of the backend.
            watch.stop();
            self.backend.stop(queues.len());
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for the end of the connection, which is all that is of interest: the backend says nothing unasked.
fn watch(events: &mut Events, stream: &UnixStream, fault: &Fault) {
    if let Err(source) = events.add(stream, EventSet::READ_HANG_UP, 0) {
        fault.raise(&StartError::System {
            what: "watch the vhost-user backend",
            source,
        });
        return;
    }
    for wake in events.wait(-1) {
        match wake {
            Wake::Ready(..) => fault.raise(&Gone),
            Wake::Stop => {}
        }
    }
}
