//! Where the agent is called: vsock in a guest, unix sockets in tests. The service behind is the same.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use tonic::transport::server::Connected;

/// A listening socket.
pub enum Listener {
    /// A port of the guest.
    Vsock(VsockListener),
    /// A path.
    Unix(UnixListener),
}

/// A connection from the host.
pub enum Connection {
    /// Over vsock.
    Vsock(VsockStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Listener {
    /// Listens on a vsock port.
    ///
    /// # Errors
    /// When the guest has no vsock, or the port is taken.
    pub fn vsock(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self::Vsock)
    }

    /// Listens on a unix socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn unix(path: &Path) -> io::Result<Self> {
        UnixListener::bind(path).map(Self::Unix)
    }

    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Vsock(listener) => listener.accept().await.map(|(s, _)| Connection::Vsock(s)),
            Self::Unix(listener) => listener.accept().await.map(|(s, _)| Connection::Unix(s)),
        }
    }

    /// Accepts for as long as anybody takes the connections. A failure to accept (too many open files, say) is logged, and
    /// passes.
    pub async fn accept_into(self, connections: mpsc::Sender<Connection>) {
        loop {
            match self.accept().await {
                Ok(connection) => {
                    if connections.send(connection).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                Pin::new(stream).poll_shutdown(cx)
            }
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
