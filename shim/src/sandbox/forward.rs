//! Connections to the loopback of the pod's namespace, passed on to the guest's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::streams;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::network::Localhost;

/// How long the guest may take to say whether anybody listens.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many connections are passed on at a time; further ones wait.
const CONNECTIONS_MAX: usize = 256;
/// How long to wait after a failure to accept, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Passes connections on until it is dropped, and with it they are closed.
#[derive(Debug)]
pub(super) struct Forwarding {
    tasks: Vec<JoinHandle<()>>,
    /// The connections are led here for as long as this is kept.
    _localhost: Localhost,
}

impl Forwarding {
    /// Begins to pass connections on to the guest behind `vsock`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn begin(mut localhost: Localhost, vsock: &Path) -> io::Result<Self> {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = Vec::new();
        for listener in std::mem::take(&mut localhost.listeners) {
            let listener = TcpListener::from_std(listener)?;
            tasks.push(tokio::spawn(accept(
                listener,
                vsock.to_owned(),
                room.clone(),
            )));
        }
        Ok(Self {
            tasks,
            _localhost: localhost,
        })
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, vsock: PathBuf, room: Arc<Semaphore>) {
    // They end with this.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                let vsock = vsock.clone();
                connections.spawn(async move {
                    if let Err(error) = pass_on(connection, &vsock).await {
                        log::debug!("a connection to the guest's loopback: {error}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                log::warn!("cannot accept a connection in the pod's network: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn pass_on(mut connection: TcpStream, vsock: &Path) -> io::Result<()> {
    // The one that was dialled.
    let port = connection.local_addr()?.port();
    let opening = tokio::time::timeout(ANSWER_TIMEOUT, streams::open_port(vsock, port));
    match opening
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    {
        Ok(mut guest) => {
            tokio::io::copy_bidirectional(&mut connection, &mut guest).await?;
            Ok(())
        }
        Err(error) => {
            // A reset, as whoever dials a port without a listener gets.
            connection.set_zero_linger()?;
            Err(error)
        }
    }
}
