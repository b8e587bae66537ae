//! The two ways to a guest's vsock ports: the VMM's unix socket, or the host kernel's own vsock.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use orlop_proto::agent::STREAM_PORT;
use orlop_proto::agent::v1::{Stream, StreamHello};
use orlop_proto::connect;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_vsock::{VsockAddr, VsockStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// A guest.
pub enum Guest {
    /// Behind the VMM's unix socket.
    Unix(PathBuf),
    /// Behind the host kernel's vsock.
    Vhost(u32),
}

/// An open stream.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Guest {
    /// A gRPC connection to a port.
    pub async fn channel(&self, port: u32) -> anyhow::Result<Channel> {
        match self {
            Self::Unix(socket) => connect::vsock(socket.clone(), port)
                .await
                .context("cannot connect to the agent"),
            Self::Vhost(cid) => {
                let address = VsockAddr::new(*cid, port);
                Endpoint::from_static("http://guest")
                    .connect_with_connector(tower::service_fn(move |_: Uri| async move {
                        VsockStream::connect(address).await.map(TokioIo::new)
                    }))
                    .await
                    .context("cannot connect to the agent")
            }
        }
    }

    /// A stream of a container's process.
    pub async fn stream(&self, container: &str, stream: Stream) -> anyhow::Result<Box<dyn Duplex>> {
        let mut connection: Box<dyn Duplex> = match self {
            Self::Unix(socket) => Box::new(connect::vsock_stream(socket, STREAM_PORT).await?),
            Self::Vhost(cid) => {
                Box::new(VsockStream::connect(VsockAddr::new(*cid, STREAM_PORT)).await?)
            }
        };
        let hello = StreamHello {
            container: container.to_owned(),
            exec: String::new(),
            stream: stream.into(),
        }
        .encode_to_vec();
        connection.write_u32(u32::try_from(hello.len())?).await?;
        connection.write_all(&hello).await?;
        if connection.read_u8().await? != 0 {
            bail!("the agent refuses the stream {stream:?}");
        }
        Ok(connection)
    }
}
