//! Whatever of a pod is killed, and at whatever moment of the pod's life: whoever waits for something is answered, the pod can be removed, and
//! nothing of it is left. containerd alone is started again, and finds its pods as they were.

#[path = "../common/mod.rs"]
mod common;
mod life;
mod victim;

use std::time::Duration;

use life::Moment::{
    self, ContainerStarts, Executes, HasEnded, IsRemoved, Runs, SandboxIsThere, SandboxStarts,
    Stops, Writes,
};
use orlop_testbed::stories::size;
use victim::Victim::{self, Containerd, Guest, Shim, Virtiofsd, Vmm};

const AT_ONCE: Duration = Duration::ZERO;
/// The guest's kernel boots then.
const SOON: Duration = Duration::from_millis(1500);
/// The agent is about to serve, or does.
const LATER: Duration = Duration::from_secs(4);

/// Who is killed when. How long after the victim has come is part of the moment where it comes and does more.
const TABLE: &[(Victim, &[Moment])] = &[
    (
        Vmm,
        &[
            ContainerStarts(AT_ONCE),
            Executes,
            ContainerStarts(SOON),
            ContainerStarts(LATER),
            Runs,
            Writes,
            Stops,
            HasEnded,
            IsRemoved,
        ],
    ),
    (
        Shim,
        &[
            Writes,
            ContainerStarts(SOON),
            SandboxStarts,
            SandboxIsThere,
            Runs,
            Executes,
            Stops,
            HasEnded,
            IsRemoved,
        ],
    ),
    (
        Virtiofsd,
        &[Runs, ContainerStarts(AT_ONCE), Executes, Writes, HasEnded],
    ),
    (Guest, &[Executes, Runs]),
    (
        Containerd,
        &[
            Executes,
            SandboxIsThere,
            ContainerStarts(SOON),
            Runs,
            Writes,
            Stops,
            HasEnded,
        ],
    ),
];

/// The first moments of each victim, or all of them where everything is told at its full size.
fn moments(victim: Victim) -> impl Iterator<Item = Moment> {
    let all = TABLE.iter().find(|(other, _)| *other == victim);
    let (_, moments) = all.expect("a victim of the table");
    let usual = if victim == Vmm { 2 } else { 1 };
    let count = size(usual, moments.len() as u64) as usize;
    moments.iter().copied().take(count)
}

fn killed(victim: Victim) {
    for moment in moments(victim) {
        println!("{victim:?} is killed, {moment:?}");
        let Some(stage) = common::stage() else { return };
        life::with(stage, victim, moment);
    }
}

#[test]
fn a_pod_whose_vmm_is_killed_ends() {
    killed(Vmm);
}

#[test]
fn a_pod_whose_shim_is_killed_ends() {
    killed(Shim);
}

#[test]
fn a_pod_whose_virtiofsd_is_killed_ends() {
    killed(Virtiofsd);
}

#[test]
fn a_pod_whose_guest_dies_ends() {
    killed(Guest);
}

#[test]
fn a_pod_outlives_containerd() {
    killed(Containerd);
}
