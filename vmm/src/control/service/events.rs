//! The stream of events of one client.

use orlop_proto::vmm::v1::{self as api, EventKind};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::control::Resize;
use crate::control::news::{Event, Happening, News};

/// Passes events on until the VM has ended, or the client has gone.
pub(super) fn stream(mut events: Receiver<Event>) -> ReceiverStream<Result<api::Event, Status>> {
    let (to, client) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let event: api::Event = match events.recv().await {
                Ok(event) => event.into(),
                Err(RecvError::Lagged(count)) => missed(count),
                Err(RecvError::Closed) => return,
            };
            let last = event.kind() == EventKind::Ended;
            if to.send(Ok(event)).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(client)
}

fn missed(count: u64) -> api::Event {
    api::Event {
        unix_ms: News::now(),
        kind: EventKind::Missed.into(),
        message: format!("{count} events were missed"),
        outcome: api::Outcome::Unspecified.into(),
    }
}

fn size(Resize { vcpus, memory }: Resize) -> String {
    let vcpus = vcpus.map(|count| format!("{} vCPUs", count.get()));
    let memory = memory.map(|bytes| format!("{} MiB of memory", bytes >> 20));
    let what: Vec<_> = vcpus.into_iter().chain(memory).collect();
    format!("the VM is to have {}", what.join(" and "))
}

impl From<Event> for api::Event {
    fn from(event: Event) -> Self {
        let plain = |kind, message: &str| (kind, message.to_owned(), api::Outcome::Unspecified);
        let (kind, message, outcome) = match event.what {
            Happening::Booted => plain(EventKind::Booted, "the guest boots"),
            Happening::Paused => plain(EventKind::Paused, "the VM is paused"),
            Happening::Resumed => plain(EventKind::Resumed, "the VM goes on"),
            Happening::PowerButton => plain(EventKind::PowerButton, "the power button was pressed"),
            Happening::Reset => plain(EventKind::Reset, "the guest was reset"),
            Happening::DeviceAdded(number) => plain(
                EventKind::DeviceAdded,
                &format!("the guest has a new device at {number}"),
            ),
            Happening::DeviceRemoved(number) => plain(
                EventKind::DeviceRemoved,
                &format!("the guest has let go of the device at {number}"),
            ),
            Happening::Resized(resize) => plain(EventKind::Resized, &size(resize)),
            Happening::Ended(outcome) => (EventKind::Ended, outcome.to_string(), (&outcome).into()),
        };
        api::Event {
            unix_ms: event.unix_ms,
            kind: kind.into(),
            message,
            outcome: outcome.into(),
        }
    }
}
