//! Opens the standard streams of the guest's processes, with a limit of time.

use std::io;
use std::path::Path;
use std::time::Duration;

use orlop_proto::agent::v1::Stream;
use orlop_proto::streams;
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
    tokio::time::timeout(
        ANSWER_TIMEOUT,
        streams::open(vsock, container, exec, stream),
    )
    .await
    .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    .map_err(|source| IoError::Guest {
        stream: name(stream),
        source,
    })
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdin => "standard input",
        Stream::Stderr => "standard error",
        Stream::Stdout | Stream::Unspecified => "standard output",
    }
}
