//! virtio-vsock (virtio 1.2, 5.10): stream sockets between the guest and unix sockets on the host.
//!
//! A program on the host connects to the device's socket, says `CONNECT <port>\n`, and hears `OK <its own port>\n` when somebody
//! in the guest listens there; else its connection ends. A program in the guest that connects to port P of the host (context id 2)
//! reaches whoever listens at the device's socket's path with `_P` behind it.
//!
//! [`packet`] is the wire format; [`connection`] one connection, of which [`to_host`] is one direction; [`table`] all of them;
//! [`greeting`] those that have not said what they want; [`service`] the thread that moves everything.

mod connection;
mod greeting;
#[cfg(test)]
mod hostile_tests;
mod packet;
#[cfg(test)]
mod random_tests;
mod service;
mod table;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
mod tests;
mod to_host;
#[cfg(test)]
mod traffic_tests;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::greeting::Greetings;
use self::service::Service;
use self::table::{Counters, PORT_ANY, Table, listener_path};
use super::worker::Worker;
use super::{Active, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, Kind, StartError};
use crate::socket::listen_anew;

/// To the guest, from the guest, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
const RX: usize = 0;
const TX: usize = 1;
/// As long as a unix socket's path may be, in bytes.
const PATH_MAX: usize = 107;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    config: [u8; 8],
    socket: PathBuf,
    listener: Arc<UnixListener>,
    counters: Arc<Counters>,
    worker: Option<Worker<()>>,
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// 0 to 2 and the largest are taken (virtio 1.2, 5.10.4); 64 bits are reserved.
    #[error("the vsock context id {0} is not the guest's to have: use 3 to 4294967294")]
    Cid(u64),
    /// With the longest port behind it, it would not fit.
    #[error("the vsock socket's path {0} is too long: it may have {max} bytes", max = PATH_MAX - SUFFIX)]
    PathTooLong(PathBuf),
    /// Somebody else's.
    #[error(
        "cannot listen at the vsock socket {path}: another VM uses it, or it is no socket; choose another path"
    )]
    Exists {
        /// Where.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Whatever the host says.
    #[error("cannot listen at the vsock socket {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

/// The length of `_` and the longest port.
const SUFFIX: usize = 11;

impl Vsock {
    /// A device of the guest `guest_cid` that listens at the unix socket `socket`, which only this user may connect to. Idle; who
    /// connects must wait until the guest's driver is ready. The socket is removed when the device is dropped.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn new(guest_cid: u64, socket: PathBuf) -> Result<Self, CreateError> {
        if guest_cid <= 2 || guest_cid >= u64::from(u32::MAX) {
            return Err(CreateError::Cid(guest_cid));
        }
        let longest = listener_path(&socket, PORT_ANY);
        if longest.as_os_str().as_bytes().len() > PATH_MAX {
            return Err(CreateError::PathTooLong(socket));
        }
        let listener = listen_anew(&socket).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => CreateError::Exists {
                path: socket.clone(),
                source,
            },
            _ => CreateError::Listen {
                path: socket.clone(),
                source,
            },
        })?;
        Ok(Vsock {
            guest_cid,
            config: guest_cid.to_le_bytes(),
            socket,
            listener: Arc::new(listener),
            counters: Arc::default(),
            worker: None,
        })
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        // Streams are what a device without feature bits of its own has (virtio 1.2, 5.10.3).
        F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        // The event queue tells of a guest that was moved to another host, which does not happen: it is left alone.
        let service = Service {
            rx: active.take_queue(RX)?,
            tx: active.take_queue(TX)?,
            memory: active.memory,
            listener: self.listener.clone(),
            table: Table::new(self.guest_cid, self.socket.clone(), self.counters.clone()),
            greetings: Greetings::default(),
            counters: self.counters.clone(),
            buffers: VecDeque::new(),
            paused: None,
            complained: false,
        };
        let fault = active.fault;
        self.worker = Some(Worker::spawn("virtio-vsock", move |events| {
            service.run(events, &fault);
        })?);
        Ok(())
    }

    fn stop(&mut self) {
        self.worker = None;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        [
            ("connections_to_guest", &counters.to_guest),
            ("connections_to_host", &counters.to_host),
            ("resets", &counters.resets),
            ("dropped", &counters.dropped),
            ("bytes_to_host", &counters.bytes_to_host),
            ("bytes_to_guest", &counters.bytes_to_guest),
            ("rounds", &counters.rounds),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .into()
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = std::fs::remove_file(&self.socket) {
            log::debug!("virtio-vsock: {}: {error}", self.socket.display());
        }
    }
}
