//! Connections to a guest whose first bytes say what they are to be: a standard stream of a process (`StreamHello`), or a connection to
//! a port of the guest's loopback (`PortHello`).

use std::io;
use std::path::Path;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::agent::v1::{PortHello, Stream, StreamHello};
use crate::agent::{FORWARD_PORT, MAX_HELLO, STREAM_PORT};
use crate::connect::vsock_stream;

/// Opens `stream` of the process (`container`, `exec`) in the guest behind `vsock`.
///
/// # Errors
/// `NotFound` when there is no such stream, or it is taken; otherwise what the socket says.
pub async fn open(
    vsock: &Path,
    container: &str,
    exec: &str,
    stream: Stream,
) -> io::Result<UnixStream> {
    let mut connection = vsock_stream(vsock, STREAM_PORT).await?;
    let message = StreamHello {
        container: container.to_owned(),
        exec: exec.to_owned(),
        stream: stream.into(),
    };
    if hello(&mut connection, &message).await? {
        return Ok(connection);
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "no such stream, or it is taken",
    ))
}

/// Connects to a port of the loopback of the guest behind `vsock`.
///
/// # Errors
/// `ConnectionRefused` when nobody listens there; otherwise what the socket says.
pub async fn open_port(vsock: &Path, port: u16) -> io::Result<UnixStream> {
    let mut connection = vsock_stream(vsock, FORWARD_PORT).await?;
    if hello(&mut connection, &PortHello { port: port.into() }).await? {
        return Ok(connection);
    }
    Err(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("nobody in the guest listens on port {port}"),
    ))
}

/// Says what the connection is to be, and hears whether it is.
async fn hello<C: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut C,
    message: &impl Message,
) -> io::Result<bool> {
    let hello = message.encode_to_vec();
    let length = u32::try_from(hello.len())
        .ok()
        .filter(|&length| length <= MAX_HELLO);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(hello);
    connection.write_all(&message).await?;
    Ok(connection.read_u8().await? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_the_stream_behind_its_length_and_heeds_the_answer() {
        for (answer, accepted) in [(0, true), (1, false)] {
            let message = StreamHello {
                container: "c1".into(),
                exec: "e1".into(),
                stream: Stream::Stderr.into(),
            };
            let (mut host, mut guest) = tokio::io::duplex(64);
            let peer = tokio::spawn(async move {
                let length = guest.read_u32().await.unwrap();
                let mut bytes = vec![0; length as usize];
                guest.read_exact(&mut bytes).await.unwrap();
                guest.write_u8(answer).await.unwrap();
                StreamHello::decode(bytes.as_slice()).unwrap()
            });
            let said = hello(&mut host, &message).await;
            assert_eq!(said.unwrap(), accepted);
            assert_eq!(peer.await.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_is_an_error() {
        let (mut host, guest) = tokio::io::duplex(64);
        drop(guest);
        assert!(hello(&mut host, &PortHello { port: 1 }).await.is_err());
    }
}
