//! What containerd is told without having asked: events of tasks, in order, over its ttrpc socket.
//!
//! A call that causes an event only puts it in a queue. One task forwards what is there, over a connection that it keeps,
//! and tries again when containerd is away; an event that cannot be delivered for long is dropped rather than
//! holding up those behind it for ever.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::{topics, ttrpc};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Events that wait at most: containerd may be away, the shim must not grow.
const QUEUE: usize = 2048;
/// How long the delivery of one may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// How often delivery is tried, with a growing pause in between: about a minute in all.
const ATTEMPTS: u32 = 8;

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A task was created.
    Create(TaskCreate),
    /// A task was started.
    Start(TaskStart),
    /// A further process was made known.
    ExecAdded(TaskExecAdded),
    /// A further process was started.
    ExecStarted(TaskExecStarted),
    /// A process has exited.
    Exit(TaskExit),
    /// A task was deleted.
    Delete(TaskDelete),
    /// A task's processes, or one of them, were killed for want of memory.
    Oom(TaskOOM),
    /// A task was paused.
    Paused(TaskPaused),
    /// A task was resumed.
    Resumed(TaskResumed),
}

impl Event {
    /// The topic, the type's name, and the message.
    fn parts(
        &self,
    ) -> (
        &'static str,
        &'static str,
        &dyn containerd_shim_protos::protobuf::MessageDyn,
    ) {
        match self {
            Event::Create(event) => (topics::TASK_CREATE_EVENT_TOPIC, "TaskCreate", event),
            Event::Start(event) => (topics::TASK_START_EVENT_TOPIC, "TaskStart", event),
            Event::ExecAdded(event) => {
                (topics::TASK_EXEC_ADDED_EVENT_TOPIC, "TaskExecAdded", event)
            }
            Event::ExecStarted(event) => (
                topics::TASK_EXEC_STARTED_EVENT_TOPIC,
                "TaskExecStarted",
                event,
            ),
            Event::Exit(event) => (topics::TASK_EXIT_EVENT_TOPIC, "TaskExit", event),
            Event::Delete(event) => (topics::TASK_DELETE_EVENT_TOPIC, "TaskDelete", event),
            Event::Oom(event) => (topics::TASK_OOM_EVENT_TOPIC, "TaskOOM", event),
            Event::Paused(event) => (topics::TASK_PAUSED_EVENT_TOPIC, "TaskPaused", event),
            Event::Resumed(event) => (topics::TASK_RESUMED_EVENT_TOPIC, "TaskResumed", event),
        }
    }

    fn envelope(&self, namespace: &str) -> Option<Envelope> {
        let (topic, name, message) = self.parts();
        Some(Envelope {
            timestamp: MessageField::some(Timestamp::from(SystemTime::now())),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                type_url: format!("containerd.events.{name}"),
                value: message.write_to_bytes_dyn().ok()?,
                ..Any::default()
            }),
            ..Envelope::default()
        })
    }
}

/// Takes events to be delivered.
#[derive(Clone, Debug)]
pub struct Publisher {
    queue: mpsc::Sender<Envelope>,
    namespace: String,
}

impl Publisher {
    /// A publisher to the containerd whose ttrpc socket is at `address`, and the task that delivers. That task ends when
    /// the last publisher has gone and the queue is empty. Without an address, events are dropped.
    pub fn new(address: Option<String>, namespace: &str) -> (Self, JoinHandle<()>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let forwarder = tokio::spawn(forward(address, events));
        (
            Self {
                queue,
                namespace: namespace.to_owned(),
            },
            forwarder,
        )
    }

    /// Puts an event into the queue.
    pub fn publish(&self, event: &Event) {
        log::debug!("event {}", event.parts().0);
        let Some(envelope) = event.envelope(&self.namespace) else {
            return;
        };
        if self.queue.try_send(envelope).is_err() {
            log::error!(
                "event {} is dropped: {QUEUE} events wait for containerd",
                event.parts().0
            );
        }
    }
}

async fn forward(address: Option<String>, mut events: mpsc::Receiver<Envelope>) {
    let mut connection = None;
    while let Some(envelope) = events.recv().await {
        let Some(address) = &address else {
            continue;
        };
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..Default::default()
        };
        let mut pause = Duration::from_millis(100);
        for attempt in 1..=ATTEMPTS {
            match deliver(&mut connection, address, &request).await {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS => log::error!("event {topic} is lost: {error}"),
                Err(error) => {
                    log::debug!("event {topic} is not delivered yet: {error}");
                    connection = None;
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }
}

async fn deliver(
    connection: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> Result<(), ttrpc::Error> {
    let client = match connection {
        Some(client) => client,
        None => {
            let client = Client::connect(&format!("unix://{address}")).await?;
            connection.insert(EventsClient::new(client))
        }
    };
    let context = ttrpc::context::with_duration(FORWARD_TIMEOUT);
    client.forward(context, request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::protobuf::Message;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Containerd(Arc<Mutex<Vec<Envelope>>>);

    #[async_trait::async_trait]
    impl Events for Containerd {
        async fn forward(
            &self,
            _context: &ttrpc::r#async::TtrpcContext,
            request: ForwardRequest,
        ) -> ttrpc::Result<Empty> {
            self.0.lock().unwrap().push(request.envelope.unwrap());
            Ok(Empty::new())
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order_although_containerd_comes_late() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd.ttrpc");
        let (publisher, forwarder) = Publisher::new(Some(path.display().to_string()), "k8s.io");
        publisher.publish(&Event::Create(TaskCreate {
            container_id: "c".into(),
            ..Default::default()
        }));
        publisher.publish(&Event::Start(TaskStart {
            container_id: "c".into(),
            pid: 7,
            ..Default::default()
        }));
        publisher.publish(&Event::Exit(TaskExit {
            container_id: "c".into(),
            ..Default::default()
        }));
        tokio::time::sleep(Duration::from_millis(50)).await;

        let containerd = Containerd::default();
        let mut server = ttrpc::r#async::Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap()
            .register_service(create_events(Arc::new(containerd.clone())));
        server.start().await.unwrap();
        drop(publisher);
        forwarder.await.unwrap();
        let seen = containerd.0.lock().unwrap();
        let topics: Vec<_> = seen
            .iter()
            .map(|envelope| envelope.topic.as_str())
            .collect();
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit"]);
        assert_eq!(seen[1].namespace, "k8s.io");
        assert_eq!(seen[1].event.type_url, "containerd.events.TaskStart");
        assert_eq!(
            TaskStart::parse_from_bytes(&seen[1].event.value)
                .unwrap()
                .pid,
            7
        );
    }

    #[tokio::test]
    async fn a_queue_that_is_full_drops_and_does_not_wait() {
        let (publisher, _forwarder) = Publisher::new(Some("/nonexistent".into()), "n");
        for _ in 0..3 * QUEUE {
            publisher.publish(&Event::Paused(TaskPaused::default()));
        }
    }
}
