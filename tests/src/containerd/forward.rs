//! A connection to a port of a pod, as `kubectl port-forward` has it: a WebSocket to containerd's streaming server.
//!
//! Each message begins with the number of its channel: 0 for the bytes, 1 for what went wrong. Each channel begins with the port.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tungstenite::{Error, Message};

use super::exec::connect;

const BYTES: u8 = 0;
const ERROR: u8 = 1;
/// How long the port is at a channel's beginning.
const PORT: usize = 2;

/// Says `input` to the port that is forwarded at `address`, and takes what is answered until the other side ends.
///
/// # Errors
/// When the streaming server cannot be reached, or says that the port cannot, or nothing comes for `limit`.
pub fn ask(address: &str, input: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let (mut socket, connection) = connect(address)?;
    connection.set_read_timeout(Some(limit))?;
    let mut message = vec![BYTES];
    message.extend_from_slice(input);
    socket.send(Message::Binary(message.into()))?;
    let (mut answer, mut error) = (Vec::new(), Vec::new());
    loop {
        match socket.read() {
            Ok(Message::Binary(message)) => match message.split_first() {
                Some((&BYTES, bytes)) => answer.extend_from_slice(bytes),
                Some((&ERROR, bytes)) => error.extend_from_slice(bytes),
                _ => bail!("a message of no known channel"),
            },
            Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => break,
            Ok(_) => {}
            Err(Error::Protocol(_)) => break,
            Err(error) => return Err(error).context("the forwarded connection broke off"),
        }
    }
    if let Some(error) = error.get(PORT..).filter(|error| !error.is_empty()) {
        bail!("{}", String::from_utf8_lossy(error));
    }
    Ok(answer.get(PORT..).unwrap_or_default().to_vec())
}
