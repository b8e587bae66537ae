//! The CRI's own tests of runtimes: whatever runc does of them on a node, Orlop does there.

mod common;

use common::stage;
use orlop_testbed::conformance::Suite;
use orlop_testbed::conformance::report::{Outcome, Pair};
use orlop_testbed::containerd::HANDLER;

/// What a VM cannot do, by a part of the test's name.
const BEYOND_A_VM: &[(&str, &str)] = &[
    (
        "HostNetwork is true",
        "a guest has a network of its own; such a pod is refused",
    ),
    (
        "HostIpc is true",
        "the host's shared memory segments are in another kernel",
    ),
    (
        "mount with 'rshared' should support propagation",
        "a guest's mounts do not come out of it",
    ),
    (
        "portforward in host network",
        "a guest has a network of its own; such a pod is refused",
    ),
    (
        "should support non-recursive readonly mounts",
        "what is read-only is so with all that the node has mounted below it",
    ),
];

#[test]
fn what_runc_does_of_the_cris_tests_orlop_does() {
    let Some(stage) = stage() else { return };
    let suite = Suite::prepare(&stage.node).unwrap();
    let runc = suite.run("runc").unwrap();
    let orlop = suite.run(HANDLER).unwrap();
    for (name, report) in [("runc", &runc), ("orlop", &orlop)] {
        let (passed, failed, skipped) = report.counts();
        println!("critest with {name}: {passed} passed, {failed} failed, {skipped} skipped");
    }
    assert!(
        runc.counts().0 > 0,
        "runc does nothing that could be compared"
    );
    let (mut behind, mut stale) = (0, 0);
    for pair in orlop.beside(&runc) {
        let excuse = BEYOND_A_VM
            .iter()
            .find(|(part, _)| pair.name.contains(part));
        match (excuse, pair) {
            (Some((_, why)), pair) if pair.falls_behind() => {
                println!("beyond a VM: {}: {why}", pair.name);
            }
            (
                Some(_),
                Pair {
                    outcome: Outcome::Passed,
                    ..
                },
            ) => {
                println!("not beyond a VM: {}", pair.name);
                stale += 1;
            }
            (None, pair) if pair.falls_behind() => {
                println!(
                    "runc does it and Orlop does not: {}: {:?}",
                    pair.name, pair.outcome
                );
                behind += 1;
            }
            (
                _,
                Pair {
                    reference: Outcome::Failed(said),
                    outcome,
                    ..
                },
            ) => {
                println!(
                    "runc fails here: {}: {said:?}; Orlop: {outcome:?}",
                    pair.name
                );
            }
            _ => {}
        }
    }
    assert_eq!((behind, stale), (0, 0), "see above");
}
