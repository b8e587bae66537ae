//! What takes the guest's time: each operation has an id and a deadline, and whoever knows the id can wait for it, also a client that came
//! later than the one that began it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_proto::vmm::v1 as api;
use tokio::sync::watch;
use tonic::Status;

use crate::control::Done;
use crate::control::news::News;

/// As many are known. The oldest of those that are over is forgotten for a new one.
const KNOWN: usize = 64;

/// The operations of one VM.
#[derive(Debug, Default)]
pub(super) struct Operations(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    known: BTreeMap<u64, Operation>,
}

#[derive(Clone, Debug)]
struct Operation {
    deadline_unix_ms: u64,
    end: watch::Receiver<Option<End>>,
}

/// How one ended.
type End = Result<(), Status>;

impl Operations {
    /// Begins one that is done when all of `waits` are; `late` is what is said when that takes longer than `limit`.
    pub fn begin(
        &self,
        waits: Vec<Done>,
        limit: Duration,
        late: String,
    ) -> Result<api::Operation, Status> {
        let (tell, end) = watch::channel(None);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let deadline_unix_ms = News::now().saturating_add(limit_ms);
        let id = self.lock().add(Operation {
            deadline_unix_ms,
            end,
        })?;
        tokio::spawn(async move {
            let end = match tokio::time::timeout(limit, all(waits)).await {
                Ok(end) => end,
                Err(_) => Err(Status::deadline_exceeded(late)),
            };
            tell.send_replace(Some(end));
        });
        Ok(api::Operation {
            id,
            done: false,
            deadline_unix_ms,
        })
    }

    /// Waits for one.
    pub async fn wait(&self, id: u64) -> Result<api::Operation, Status> {
        let known = self.lock().known.get(&id).cloned();
        let mut operation = known.ok_or_else(|| {
            Status::not_found(format!(
                "there is no operation {id}; the last {KNOWN} are known"
            ))
        })?;
        let end = operation.end.wait_for(Option::is_some).await;
        match end.ok().as_deref() {
            Some(Some(Ok(()))) => Ok(api::Operation {
                id,
                done: true,
                deadline_unix_ms: operation.deadline_unix_ms,
            }),
            Some(Some(Err(status))) => Err(status.clone()),
            _ => Err(Status::unavailable("the VM is ending")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No change of it is ever left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn add(&mut self, operation: Operation) -> Result<u64, Status> {
        if self.known.len() >= KNOWN {
            let over = |(_, known): &(&u64, &Operation)| known.end.borrow().is_some();
            let oldest = self.known.iter().find(over).map(|(id, _)| *id);
            let oldest = oldest.ok_or_else(|| {
                Status::resource_exhausted(format!(
                    "{KNOWN} operations are under way; wait for one of them"
                ))
            })?;
            self.known.remove(&oldest);
        }
        self.last += 1;
        self.known.insert(self.last, operation);
        Ok(self.last)
    }
}

async fn all(waits: Vec<Done>) -> End {
    for wait in waits {
        wait.await.map_err(|_| {
            Status::aborted("the guest was reset, or is to do something else by now")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tonic::Code;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn run<T>(story: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(story)
    }

    #[test]
    fn an_operation_is_done_when_all_of_it_is() {
        run(async {
            let operations = Operations::default();
            let (first, second) = (oneshot::channel(), oneshot::channel());
            let waits = vec![first.1, second.1];
            let id = operations.begin(waits, LONG, String::new()).unwrap().id;
            first.0.send(()).unwrap();
            let soon = Duration::from_millis(20);
            let early = tokio::time::timeout(soon, operations.wait(id)).await;
            assert!(early.is_err(), "the second part is not done");
            second.0.send(()).unwrap();
            assert!(operations.wait(id).await.unwrap().done);
            assert!(operations.wait(id).await.unwrap().done, "by anybody");
        });
    }

    #[test]
    fn one_ends_in_time_or_is_given_up() {
        run(async {
            let operations = Operations::default();
            let (kept, done) = oneshot::channel();
            let short = Duration::from_millis(1);
            let late = operations.begin(vec![done], short, "too late".into());
            let status = operations.wait(late.unwrap().id).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded);
            assert_eq!(status.message(), "too late");
            drop(kept);
            let (dropped, done) = oneshot::channel();
            let given_up = operations.begin(vec![done], LONG, String::new()).unwrap();
            drop(dropped);
            let status = operations.wait(given_up.id).await.unwrap_err();
            assert_eq!(status.code(), Code::Aborted);
            let unknown = operations.wait(3).await.unwrap_err();
            assert_eq!(unknown.code(), Code::NotFound);
        });
    }

    #[test]
    fn a_client_cannot_have_the_vmm_keep_more_and_more() {
        run(async {
            let operations = Operations::default();
            let begin = || {
                let (tell, done) = oneshot::channel();
                let begun = operations.begin(vec![done], LONG, String::new());
                begun.map(|operation| (operation.id, tell))
            };
            let mut pending: Vec<_> = (0..KNOWN).map(|_| begin().unwrap()).collect();
            assert_eq!(begin().unwrap_err().code(), Code::ResourceExhausted);
            let (id, tell) = pending.remove(7);
            tell.send(()).unwrap();
            operations.wait(id).await.unwrap();
            let (last, _kept) = begin().unwrap();
            assert_eq!(last, KNOWN as u64 + 1);
            let forgotten = operations.wait(id).await.unwrap_err();
            assert_eq!(forgotten.code(), Code::NotFound);
        });
    }
}
