//! The guest's clock, which is to be the host's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use orlop_proto::agent::v1::Stdio;
use orlop_proto::vmm::v1::{PauseRequest, ResumeRequest};
use serde_json::json;

use crate::agent::{AgentVm, OUTPUT, spec};
use crate::common::stage;
use crate::guest::control;

const NEAR_NS: i64 = 100_000_000;
const STANDSTILL: Duration = Duration::from_secs(3);
/// The agent looks at the host's clock every ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);

fn host_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_nanos()).unwrap()
}

/// How far the guest's clock is from ours at least, in nanoseconds: when it says that a process has exited, which lies between two
/// moments of ours.
fn apart(vm: &AgentVm, number: u32) -> i64 {
    let exec = format!("e{number}");
    let process = json!({"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    vm.exec("clock", &exec, &process, Stdio::default()).unwrap();
    vm.start_process("clock", &exec).unwrap();
    let before = host_now();
    vm.signal("clock", &exec, libc::SIGKILL).unwrap();
    let (_, at) = vm.exit("clock", &exec).unwrap();
    let after = host_now();
    vm.delete("clock", &exec).unwrap();
    println!(
        "the guest's clock says {} ms, in {} ms",
        (at - before) / 1_000_000,
        (after - before) / 1_000_000
    );
    (before - at).max(at - after).max(0)
}

#[test]
fn the_guests_clock_is_the_hosts_after_a_pause_too() {
    if stage().is_none() {
        return;
    }
    let vm = AgentVm::start();
    let mut wanted = spec(&["sleep", "1000"]);
    for set in ["bounding", "effective", "permitted"] {
        wanted["process"]["capabilities"][set] = json!(["CAP_SYS_TIME"]);
    }
    vm.create("clock", &wanted).unwrap();
    vm.start_process("clock", "").unwrap();
    assert!(apart(&vm, 0) < NEAR_NS, "at first");

    // A guest cannot be told that it lags a pause behind: its clock goes on meanwhile. So it gets a time that is plainly wrong.
    let mut process = wanted["process"].clone();
    process["args"] = json!(["sh", "-c", "date -s @1000000000"]);
    vm.exec("clock", "set", &process, OUTPUT).unwrap();
    let socket = vm.control();
    let (said, status) = vm.finish("clock", "set").unwrap();
    assert_eq!(status, 0, "{said}");
    control(&socket, async |mut vmm| vmm.pause(PauseRequest {}).await).unwrap();
    std::thread::sleep(STANDSTILL);
    control(&socket, async |mut vmm| vmm.resume(ResumeRequest {}).await).unwrap();

    let end = Instant::now() + PATIENCE;
    let mut number = 1;
    loop {
        let apart = apart(&vm, number);
        if apart < NEAR_NS {
            break;
        }
        assert!(Instant::now() < end, "{} ms apart", apart / 1_000_000);
        number += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    // It stays there.
    control(&socket, async |mut vmm| vmm.pause(PauseRequest {}).await).unwrap();
    std::thread::sleep(STANDSTILL);
    control(&socket, async |mut vmm| vmm.resume(ResumeRequest {}).await).unwrap();
    assert!(apart(&vm, 1000) < NEAR_NS, "after another pause");
    vm.signal("clock", "", libc::SIGKILL).unwrap();
    vm.stop();
}
