//! Clients' connections: a unix socket, or a vsock port of a guest behind the VMM's unix socket.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::files::{Carrier, Files};

/// Connects to a gRPC server on a unix socket, such as a VMM's control socket.
///
/// # Errors
/// When the socket is absent, or nobody listens on it.
pub async fn unix(path: impl Into<PathBuf>) -> Result<Channel, tonic::transport::Error> {
    let path = path.into();
    endpoint()
        .connect_with_connector(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

/// As [`unix`], with a way to hand over files on the connection.
///
/// # Errors
/// As [`unix`].
pub async fn unix_with_files(
    path: impl Into<PathBuf>,
) -> Result<(Channel, Files), tonic::transport::Error> {
    let path = path.into();
    let files = Files::default();
    let carried = files.clone();
    let channel = endpoint()
        .connect_with_connector(service_fn(move |_: Uri| {
            let (path, files) = (path.clone(), carried.clone());
            async move {
                let stream = UnixStream::connect(path).await?;
                Ok::<_, io::Error>(TokioIo::new(Carrier::client(stream, files)))
            }
        }))
        .await?;
    Ok((channel, files))
}

/// Connects to a gRPC server on `port` of the guest whose VMM backs vsock by the unix socket at `socket`.
///
/// # Errors
/// When the socket is absent, or nothing in the guest listens on the port.
pub async fn vsock(
    socket: impl Into<PathBuf>,
    port: u32,
) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.into();
    endpoint()
        .connect_with_connector(service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { vsock_stream(&socket, port).await.map(TokioIo::new) }
        }))
        .await
}

/// Opens a plain stream to `port` of a guest.
///
/// The host connects to the VMM's socket and says `CONNECT <port>\n`; the VMM answers `OK <host port>\n` once the guest has
/// accepted, or closes the connection: the convention that Firecracker and Cloud Hypervisor share.
///
/// # Errors
/// `ConnectionRefused` when nothing in the guest listens on the port; otherwise what the socket says.
pub async fn vsock_stream(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut answer = Vec::with_capacity(16);
    // The answer is read byte by byte: what follows it belongs to the stream.
    while answer.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) if answer.len() < 32 => answer.push(byte),
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "no OK from the VMM",
                ));
            }
            Err(_) => {
                let what = format!("nothing in the guest listens on vsock port {port}");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, what));
            }
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no OK from the VMM",
        ))
    }
}

fn endpoint() -> Endpoint {
    // The URI is never resolved: the connector above decides where the bytes go.
    Endpoint::from_static("http://orlop.invalid")
}
