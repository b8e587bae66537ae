//! Every call in every state.

use orlop_proto::vmm::v1::{self as api, VmState};
use tonic::Code;

use super::bench::{Bench, Verb, call, run};
use crate::vm::Outcome;

/// What a call comes to.
#[derive(Debug, PartialEq)]
enum Then {
    /// The VM is in this state.
    Is(VmState),
    /// The VM has ended.
    Ended(Outcome),
    /// The call is refused, and nothing has changed.
    Refused(Code),
}

#[test]
fn every_call_in_every_state() {
    use Then::{Ended, Is, Refused};
    use VmState::{Created, Paused, Running};
    let table = [
        (Running, Verb::Describe, Is(Running)),
        (Running, Verb::Pause, Is(Paused)),
        (Running, Verb::Resume, Is(Running)),
        (Running, Verb::PowerButton, Is(Running)),
        (Running, Verb::Reset, Ended(Outcome::Reset)),
        (Running, Verb::Kill, Ended(Outcome::Killed)),
        (Running, Verb::Events, Is(Running)),
        (Running, Verb::Console, Is(Running)),
        (Running, Verb::AddDisk, Refused(Code::FailedPrecondition)),
        (Running, Verb::AddNet, Refused(Code::InvalidArgument)),
        (Running, Verb::AddFs, Refused(Code::FailedPrecondition)),
        (Running, Verb::RemoveDevice, Refused(Code::NotFound)),
        (Running, Verb::SetBalloon, Refused(Code::FailedPrecondition)),
        (
            Running,
            Verb::ResizeConsole,
            Refused(Code::FailedPrecondition),
        ),
        (
            Paused,
            Verb::ResizeConsole,
            Refused(Code::FailedPrecondition),
        ),
        (Paused, Verb::SetBalloon, Refused(Code::FailedPrecondition)),
        (Running, Verb::Resize, Refused(Code::FailedPrecondition)),
        (Paused, Verb::Resize, Refused(Code::FailedPrecondition)),
        (Running, Verb::WaitOperation, Refused(Code::NotFound)),
        (Paused, Verb::WaitOperation, Refused(Code::NotFound)),
        (Paused, Verb::Describe, Is(Paused)),
        (Paused, Verb::Pause, Is(Paused)),
        (Paused, Verb::Resume, Is(Running)),
        (Paused, Verb::PowerButton, Refused(Code::FailedPrecondition)),
        (Paused, Verb::Reset, Ended(Outcome::Reset)),
        (Paused, Verb::Kill, Ended(Outcome::Killed)),
        (Paused, Verb::Events, Is(Paused)),
        (Paused, Verb::Console, Is(Paused)),
        (Paused, Verb::AddDisk, Refused(Code::FailedPrecondition)),
        (Paused, Verb::AddNet, Refused(Code::InvalidArgument)),
        (Paused, Verb::AddFs, Refused(Code::FailedPrecondition)),
        (
            Paused,
            Verb::RemoveDevice,
            Refused(Code::FailedPrecondition),
        ),
        (Running, Verb::Boot, Is(Running)),
        (Paused, Verb::Boot, Is(Paused)),
        (Created, Verb::Describe, Is(Created)),
        (Created, Verb::Boot, Is(Running)),
        (Created, Verb::Pause, Refused(Code::FailedPrecondition)),
        (Created, Verb::Resume, Refused(Code::FailedPrecondition)),
        (
            Created,
            Verb::PowerButton,
            Refused(Code::FailedPrecondition),
        ),
        (Created, Verb::Reset, Refused(Code::FailedPrecondition)),
        (Created, Verb::Kill, Ended(Outcome::Killed)),
        (Created, Verb::Events, Is(Created)),
        (Created, Verb::Console, Is(Created)),
        (Created, Verb::AddDisk, Refused(Code::FailedPrecondition)),
        (Created, Verb::AddNet, Refused(Code::InvalidArgument)),
        (Created, Verb::AddFs, Refused(Code::FailedPrecondition)),
        (
            Created,
            Verb::RemoveDevice,
            Refused(Code::FailedPrecondition),
        ),
        (
            Created,
            Verb::ResizeConsole,
            Refused(Code::FailedPrecondition),
        ),
        (Created, Verb::SetBalloon, Refused(Code::FailedPrecondition)),
        (Created, Verb::Resize, Refused(Code::FailedPrecondition)),
        (Created, Verb::WaitOperation, Refused(Code::NotFound)),
    ];
    for (state, verb, then) in table {
        let bench = match state {
            Created => Bench::created(),
            _ => Bench::new(),
        };
        let (answer, client) = run(async {
            let mut client = bench.client().await;
            if state == Paused {
                call(&mut client, Verb::Pause).await.unwrap();
            }
            (call(&mut client, verb).await, client)
        });
        if let Ended(outcome) = then {
            assert_eq!(bench.ended.join().unwrap(), outcome, "{state:?} {verb:?}");
            continue;
        }
        let now = run(async {
            let mut client = bench.client().await;
            let answer = client.describe(api::DescribeRequest {}).await.unwrap();
            answer.into_inner().state()
        });
        let came = match answer {
            Ok(()) => Is(now),
            Err(status) => {
                assert_eq!(now, state, "{verb:?} was refused and has changed something");
                Refused(status.code())
            }
        };
        assert_eq!(came, then, "{state:?} {verb:?}");
        drop(client);
        bench.kill();
    }
}
