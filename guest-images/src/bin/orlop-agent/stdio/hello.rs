//! The beginning of a connection to the stream port: the host says which stream of which process it wants.
//!
//! The message is [`StreamHello`] behind its length; the answer is one byte. The host may be anything: the length is bounded,
//! the time too, and so is the number of connections that have not yet said what they want.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::agent::MAX_HELLO;
use orlop_proto::agent::v1::StreamHello;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};

use crate::container::Containers;
use crate::ids::ProcessId;
use crate::listen::Connection;

/// How long the host may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections that have not said so yet; further ones wait to be accepted.
const MAX_PENDING: usize = 64;

/// The answer to a connection that becomes what was asked for.
pub const ACCEPTED: u8 = 0;
/// The answer to one that does not.
pub const REFUSED: u8 = 1;

/// Serves the stream port.
pub async fn serve(mut connections: mpsc::Receiver<Connection>, containers: Arc<Containers>) {
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    while let Some(connection) = connections.recv().await {
        let Ok(permit) = pending.clone().acquire_owned().await else {
            return;
        };
        let containers = containers.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(PATIENCE, greet(connection, &containers)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::debug!("a stream was not opened: {error}"),
                Err(_) => log::debug!("a stream was not opened: the host did not say which"),
            }
            drop(permit);
        });
    }
}

async fn greet(mut connection: Connection, containers: &Containers) -> io::Result<()> {
    let taken = match read_hello(&mut connection).await {
        Ok(hello @ StreamHello { .. }) => ProcessId::parse(&hello.container, &hello.exec)
            .and_then(|id| containers.process(&id))
            .map_err(io::Error::other)
            .and_then(|process| {
                process
                    .slots
                    .take(hello.stream())
                    .ok_or_else(|| io::Error::other("there is no such stream, or it is taken"))
            }),
        Err(error) => Err(error),
    };
    match taken {
        Ok(slot) => {
            connection.write_all(&[ACCEPTED]).await?;
            // The process may have ended meanwhile; then the connection just closes.
            drop(slot.send(connection));
            Ok(())
        }
        Err(error) => {
            connection.write_all(&[REFUSED]).await?;
            connection.shutdown().await?;
            Err(error)
        }
    }
}

/// Reads the message, and not a byte more.
///
/// # Errors
/// When it is too long, or none.
pub async fn read_hello<M: Message + Default>(
    connection: &mut (impl AsyncRead + Unpin),
) -> io::Result<M> {
    let length = connection.read_u32().await?;
    if length > MAX_HELLO {
        return Err(io::Error::other(format!(
            "a hello of {length} bytes is larger than {MAX_HELLO}"
        )));
    }
    let mut message = vec![0; length as usize];
    connection.read_exact(&mut message).await?;
    M::decode(message.as_slice()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_proto::agent::v1::Stream;

    fn framed(hello: &StreamHello) -> Vec<u8> {
        let body = hello.encode_to_vec();
        let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    #[tokio::test]
    async fn reads_a_hello_and_leaves_what_follows() {
        let hello = StreamHello {
            container: "web".into(),
            exec: "sh".into(),
            stream: Stream::Stdin.into(),
        };
        let mut bytes = framed(&hello);
        bytes.extend(b"input");
        let mut rest = bytes.as_slice();
        assert_eq!(read_hello::<StreamHello>(&mut rest).await.unwrap(), hello);
        assert_eq!(rest, b"input");
    }

    #[tokio::test]
    async fn refuses_what_is_no_hello() {
        for bytes in [
            &b""[..],
            &[0, 0, 0],
            &[0, 0, 0, 9, 1],
            &(MAX_HELLO + 1).to_be_bytes(),
            &u32::MAX.to_be_bytes(),
            &[0, 0, 0, 2, 0xff, 0xff],
        ] {
            let mut rest = bytes;
            let read = read_hello::<StreamHello>(&mut rest).await;
            assert!(read.is_err(), "{bytes:?}");
        }
    }
}
