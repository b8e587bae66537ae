//! The standard streams of a process in a guest: the first bytes say whose, and which of them (`StreamHello`).

use std::io;
use std::path::Path;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::agent::v1::{Stream, StreamHello};
use crate::agent::{MAX_HELLO, STREAM_PORT};
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
    hello(&mut connection, container, exec, stream).await?;
    Ok(connection)
}

/// Says which stream the connection is to be, and hears whether it is.
async fn hello<C: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut C,
    container: &str,
    exec: &str,
    stream: Stream,
) -> io::Result<()> {
    let hello = StreamHello {
        container: container.to_owned(),
        exec: exec.to_owned(),
        stream: stream.into(),
    }
    .encode_to_vec();
    let length = u32::try_from(hello.len())
        .ok()
        .filter(|&length| length <= MAX_HELLO);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(hello);
    connection.write_all(&message).await?;
    match connection.read_u8().await? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no such stream, or it is taken",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_the_stream_behind_its_length_and_heeds_the_answer() {
        for (answer, accepted) in [(0, true), (1, false)] {
            let (mut host, mut guest) = tokio::io::duplex(64);
            let peer = tokio::spawn(async move {
                let length = guest.read_u32().await.unwrap();
                let mut bytes = vec![0; length as usize];
                guest.read_exact(&mut bytes).await.unwrap();
                guest.write_u8(answer).await.unwrap();
                StreamHello::decode(bytes.as_slice()).unwrap()
            });
            let said = hello(&mut host, "c1", "e1", Stream::Stderr).await;
            assert_eq!(said.is_ok(), accepted);
            let heard = peer.await.unwrap();
            assert_eq!(
                (heard.container.as_str(), heard.exec.as_str()),
                ("c1", "e1")
            );
            assert_eq!(heard.stream(), Stream::Stderr);
        }
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_is_an_error() {
        let (mut host, guest) = tokio::io::duplex(64);
        drop(guest);
        assert!(hello(&mut host, "c", "", Stream::Stdin).await.is_err());
    }
}
