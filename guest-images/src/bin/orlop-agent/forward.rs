//! Connections of the host to ports of the guest's loopback.
//!
//! The host says which port, as it says which stream ([`crate::stdio::hello`]), and hears whether anybody listens there: at 127.0.0.1, or
//! else at ::1. From then on bytes pass either way until both sides have ended.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::agent::v1::PortHello;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::listen::Connection;
use crate::stdio::hello::{ACCEPTED, REFUSED, read_hello};

/// How long the host may take to say which port, and a program to accept the connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// Serves the port for connections to ports.
pub async fn serve(mut connections: mpsc::Receiver<Connection>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(connection) = connections.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        tokio::spawn(async move {
            if let Err(error) = pass_on(connection).await {
                log::debug!("a connection to a port: {error}");
            }
            drop(permit);
        });
    }
}

async fn pass_on(mut connection: Connection) -> io::Result<()> {
    let dialled = async {
        let hello: PortHello = read_hello(&mut connection).await?;
        dial(hello.port).await
    };
    let dialled = tokio::time::timeout(PATIENCE, dialled).await;
    match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(mut program) => {
            connection.write_all(&[ACCEPTED]).await?;
            copy_bidirectional(&mut connection, &mut program).await?;
            Ok(())
        }
        Err(error) => {
            connection.write_all(&[REFUSED]).await?;
            connection.shutdown().await?;
            Err(error)
        }
    }
}

async fn dial(port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(io::Error::other)?;
    match TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await {
        Ok(stream) => Ok(stream),
        Err(_) => TcpStream::connect((IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, UnixStream};

    /// A connection that has said `port`, and the answer.
    async fn connect(port: u32) -> (UnixStream, u8) {
        let (mut host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(pass_on(Connection::Unix(guest)));
        let hello = PortHello { port }.encode_to_vec();
        host.write_u32(hello.len() as u32).await.unwrap();
        host.write_all(&hello).await.unwrap();
        let answer = host.read_u8().await.unwrap();
        (host, answer)
    }

    #[tokio::test]
    async fn bytes_pass_either_way_and_each_side_ends_by_itself() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let program = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut heard = String::new();
                stream.read_to_string(&mut heard).await.unwrap();
                stream.write_all(b"answer").await.unwrap();
                heard
            });
            let (mut host, answer) = connect(port.into()).await;
            assert_eq!(answer, ACCEPTED);
            host.write_all(b"question").await.unwrap();
            host.shutdown().await.unwrap();
            let mut heard = String::new();
            host.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "answer");
            assert_eq!(program.await.unwrap(), "question");
        }
    }

    #[tokio::test]
    async fn a_port_without_a_listener_and_one_that_is_none_are_refused() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for port in [port.into(), 65_536, u32::MAX] {
            let (mut host, answer) = connect(port).await;
            assert_eq!(answer, REFUSED);
            assert_eq!(host.read(&mut [0]).await.unwrap(), 0, "it is closed");
        }
    }
}
