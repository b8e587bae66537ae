//! The console of one client.

use std::sync::Weak;
use std::time::Duration;

use orlop_proto::vmm::v1::{ConsoleInput, ConsoleOutput};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::devices::console::Console;
use crate::devices::console::audience::Listener;

/// How long to wait for the guest to read what it has.
const GUEST_IS_SLOW: Duration = Duration::from_millis(10);

/// Passes on what the guest writes until its console or the client has gone.
pub(super) fn stream(listener: Listener) -> ReceiverStream<Result<ConsoleOutput, Status>> {
    let (to, client) = mpsc::channel(1);
    tokio::spawn(async move {
        let Listener { recent, mut live } = listener;
        let mut missed = 0;
        let mut data = recent;
        loop {
            let output = ConsoleOutput {
                data,
                missed: std::mem::take(&mut missed),
            };
            if to.send(Ok(output)).await.is_err() {
                return;
            }
            data = loop {
                match live.recv().await {
                    Ok(piece) => break piece.to_vec(),
                    Err(RecvError::Lagged(count)) => missed += count,
                    Err(RecvError::Closed) => return,
                }
            };
        }
    });
    ReceiverStream::new(client)
}

/// Gives the guest what the client sends, as fast as it takes it.
pub(super) async fn feed(console: Weak<Console>, mut input: Streaming<ConsoleInput>) {
    // A client that breaks the protocol is one that has gone.
    while let Ok(Some(ConsoleInput { data })) = input.message().await {
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            let Some(console) = console.upgrade() else {
                return;
            };
            rest = console.feed(rest);
            drop(console);
            if !rest.is_empty() {
                tokio::time::sleep(GUEST_IS_SLOW).await;
            }
        }
    }
}
