//! The first bytes of a stream: which process's, and which of its streams (`StreamHello` of the agent's interface).

use std::io;
use std::path::Path;
use std::time::Duration;

use orlop_proto::agent::v1::{Stream, StreamHello};
use orlop_proto::agent::{MAX_HELLO, STREAM_PORT};
use orlop_proto::connect::vsock_stream;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::IoError;

/// How long the guest may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens `stream` of the process (`container`, `exec`) in the guest behind `vsock`.
pub async fn open(
    vsock: &Path,
    container: &str,
    exec: &str,
    stream: Stream,
) -> Result<UnixStream, IoError> {
    let opening = async {
        let mut connection = vsock_stream(vsock, STREAM_PORT).await?;
        hello(&mut connection, container, exec, stream).await?;
        Ok(connection)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, opening)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
        .map_err(|source| IoError::Guest {
            stream: name(stream),
            source,
        })
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

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdin => "standard input",
        Stream::Stderr => "standard error",
        Stream::Stdout | Stream::Unspecified => "standard output",
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
