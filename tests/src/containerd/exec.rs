//! The streams of a command in a container, as `kubectl exec` has them: a WebSocket to containerd's streaming server.
//!
//! Each message begins with the number of its stream (the subprotocol `v4.channel.k8s.io`): standard input 0, output 1, error 2, and on
//! 3 how the command ended. Standard input cannot be closed in this version of the protocol.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Error, Message, WebSocket};

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR: u8 = 2;
const STATUS: u8 = 3;

/// The size of a message of input.
const CHUNK: usize = 16 * 1024;

/// What a command with streams left behind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Streamed {
    /// Standard output; with a terminal, all output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The exit status.
    pub status: i64,
}

/// Gives `input` to the command whose streams are at `address`, and takes what it writes until it ends.
///
/// # Errors
/// When the streaming server cannot be reached or breaks off, or the command has not ended after `limit`.
pub fn stream(address: &str, input: &[u8], limit: Duration) -> Result<Streamed> {
    let (mut socket, connection) = connect(address)?;
    connection.set_nonblocking(true)?;

    let end = Instant::now() + limit;
    let mut chunks = input.chunks(CHUNK);
    let mut done = Streamed::default();
    loop {
        // What is written and what is read go on in turn: a command that echoes its input must not block on our not reading.
        let mut idle = true;
        match socket.flush() {
            Ok(()) => {
                if let Some(chunk) = chunks.next() {
                    queue(&mut socket, chunk)?;
                    idle = false;
                }
            }
            Err(error) if is_would_block(&error) => {}
            Err(error) => return Err(error).context("the stream broke off"),
        }
        match socket.read() {
            Ok(Message::Binary(message)) => {
                if take(&mut done, &message)? {
                    return Ok(done);
                }
                idle = false;
            }
            Ok(Message::Close(_)) => bail!("the stream ended without a status"),
            Ok(_) => {}
            Err(error) if is_would_block(&error) => {}
            Err(error) => return Err(error).context("the stream broke off"),
        }
        if Instant::now() > end {
            bail!("the command has not ended after {} s", limit.as_secs());
        }
        if idle {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The streams of a command that nobody reads; with this value they end.
#[derive(Debug)]
pub struct Unread {
    _socket: WebSocket<TcpStream>,
}

/// Starts the command whose streams are at `address`, and reads nothing of what it writes.
///
/// # Errors
/// When the streaming server cannot be reached.
pub fn unread(address: &str) -> Result<Unread> {
    let (socket, _) = connect(address)?;
    Ok(Unread { _socket: socket })
}

/// Connects to the streaming server's `address`; answers the connection beneath as well.
pub(super) fn connect(address: &str) -> Result<(WebSocket<TcpStream>, TcpStream)> {
    let mut request = address
        .replacen("http://", "ws://", 1)
        .into_client_request()
        .context("a strange address of a streaming server")?;
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        HeaderValue::from_static("v4.channel.k8s.io"),
    );
    let authority = request.uri().authority().context("an address")?.to_string();
    let connection = TcpStream::connect(&authority)
        .with_context(|| format!("cannot reach the streaming server at {authority}"))?;
    let (socket, _) = tungstenite::client(request, connection.try_clone()?)
        .map_err(|error| anyhow::anyhow!("no streams from {authority}: {error}"))?;
    Ok((socket, connection))
}

fn queue(socket: &mut WebSocket<TcpStream>, chunk: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(chunk.len() + 1);
    message.push(INPUT);
    message.extend_from_slice(chunk);
    match socket.write(Message::Binary(message.into())) {
        Ok(()) => Ok(()),
        // It is in the socket's buffer; the next flush goes on.
        Err(error) if is_would_block(&error) => Ok(()),
        Err(error) => Err(error).context("the stream broke off"),
    }
}

/// Takes one message; true when it was the command's status.
fn take(done: &mut Streamed, message: &[u8]) -> Result<bool> {
    match message.split_first() {
        Some((&OUTPUT, bytes)) => done.stdout.extend_from_slice(bytes),
        Some((&ERROR, bytes)) => done.stderr.extend_from_slice(bytes),
        Some((&STATUS, bytes)) => {
            done.status = exit_status(bytes)?;
            return Ok(true);
        }
        _ => bail!("a message of no known stream"),
    }
    Ok(false)
}

/// The exit status in a Kubernetes `Status` object: 0 on success, else a cause says it.
fn exit_status(json: &[u8]) -> Result<i64> {
    let status: Value = serde_json::from_slice(json).context("an unknown status")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    status["details"]["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| cause["message"].as_str()?.parse().ok())
        .with_context(|| format!("the command failed: {}", status["message"]))
}

fn is_would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_kubernetes_writes_it() {
        assert_eq!(exit_status(br#"{"status":"Success"}"#).unwrap(), 0);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_status(failed).unwrap(), 7);
        let broken = br#"{"status":"Failure","message":"no such container"}"#;
        assert!(exit_status(broken).is_err());
    }
}
