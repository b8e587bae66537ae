//! `orlop pci`: devices are moved between their drivers and VFIO, whole groups of them, unless the host needs one.

use std::process::{Command, Output};

use orlop_testbed::host::devices::{DISK, PEER, SIBLINGS};
use orlop_testbed::stories;
use serde_json::Value;

use super::guest::orlop;
use super::pci::{self, HostDisk};
use super::stage;

fn run(mut command: Command) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let said = [stdout, stderr].concat();
    (status.success(), String::from_utf8(said).unwrap())
}

fn orlop_pci(words: &[&str]) -> (bool, String) {
    let mut command = orlop();
    command.arg("pci").args(words);
    run(command)
}

/// The same, which is to work.
fn does(words: &[&str]) -> String {
    let (works, said) = orlop_pci(words);
    assert!(works, "{words:?}: {said}");
    said
}

/// The same, which is to be refused with these words.
fn refuses(words: &[&str], with: &[&str]) {
    let (works, said) = orlop_pci(words);
    assert!(!works, "{words:?}: {said}");
    for word in with {
        assert!(said.contains(word), "{words:?}: no {word:?} in {said}");
    }
}

/// A line of a shell, which is to work.
fn shell(line: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    let (works, said) = run(command);
    assert!(works, "{line}: {said}");
}

fn listed(address: &str) -> Value {
    let list: Value = serde_json::from_str(&does(&["ls", "--output", "json"])).unwrap();
    let rows = list.as_array().unwrap().iter();
    rows.into_iter()
        .find(|row| row["address"] == address)
        .expect("it is in the list")
        .clone()
}

#[test]
fn groups_go_to_vfio_and_back_and_what_the_host_needs_stays() {
    let Some(stage) = stage() else { return };
    if !(pci::has_driver("xhci_hcd") && pci::has_driver("snd_hda_intel")) {
        stories::skip("this host's kernel has no drivers for two functions of one slot");
        return;
    }
    let [first, second] = SIBLINGS;
    pci::give(first, Some("xhci_hcd"));
    pci::give(second, Some("snd_hda_intel"));
    let row = listed(first);
    assert_eq!(row["siblings"], serde_json::json!([second]), "{row}");
    assert_eq!(
        (&row["kind"], &row["driver"]),
        (&"USB".into(), &"xhci_hcd".into())
    );
    assert_eq!(row["blocked_by"], serde_json::json!([]), "{row}");
    refuses(&["check", first], &[first, "orlop pci bind"]);
    // One is meant, and both go; what is there already stays.
    let said = does(&["bind", first]);
    assert!(
        said.contains(&format!("{second}: snd_hda_intel -> vfio-pci")),
        "{said}"
    );
    assert_eq!(pci::driver(first).as_deref(), Some("vfio-pci"));
    let said = does(&["bind", second]);
    assert!(
        said.contains("vfio-pci already") && !said.contains("->"),
        "{said}"
    );
    let said = does(&["check", first, second]);
    assert_eq!(said.matches("ready").count(), 2, "{said}");
    let said = does(&["unbind", second]);
    assert!(
        said.contains(&format!("{first}: vfio-pci -> xhci_hcd")),
        "{said}"
    );
    assert_eq!(pci::driver(second).as_deref(), Some("snd_hda_intel"));
    assert!(does(&["unbind", first]).contains("already"));
    pci::release(first);
    pci::release(second);

    refuses(&["bind", "0000:7f:00.0"], &["orlop pci ls"]);
    refuses(&["bind", "0000:00:00.0"], &["bridge"]);
    let disk = HostDisk::take(DISK);
    let node = disk.node().display().to_string();
    shell(&format!("/sbin/mkswap {node} && /sbin/swapon {node}"));
    refuses(&["bind", DISK], &[DISK, "used for swapping"]);
    shell(&format!("/sbin/swapoff {node}"));
    pci::give(PEER, Some("e1000e"));
    let card = std::fs::read_dir(pci::path(PEER).join("net")).unwrap();
    let card = card.flatten().next().unwrap().file_name();
    let card = card.to_str().unwrap();
    shell(&format!(
        "ip link set {card} up; ip addr add 10.12.0.1/24 dev {card}; ip route add default via 10.12.0.2 dev {card} metric 7"
    ));
    refuses(&["bind", PEER], &[PEER, card, "default route"]);
    pci::release(PEER);

    claims();
    pci::release(DISK);
    drop(disk);
    stage.leaves_nothing();
}

/// A claim holds over what happens to the device, in a `/etc` of its own.
fn claims() {
    let orlop = orlop().get_program().to_str().unwrap().to_owned();
    let lines = format!(
        "mount -t tmpfs claims /etc
         {orlop} pci claim disk {DISK}
         {orlop} pci ls | grep {DISK} | grep pci.orlop.dev/disk
         {orlop} pci unbind {DISK}; [ $(basename $(readlink /sys/bus/pci/devices/{DISK}/driver)) = nvme ]
         {orlop} pci apply; [ $(basename $(readlink /sys/bus/pci/devices/{DISK}/driver)) = vfio-pci ]
         ! {orlop} pci claim other {DISK}
         {orlop} pci release disk; [ -z \"$({orlop} pci ls | grep pci.orlop.dev)\" ]"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-exc", &lines]);
    let (works, said) = run(command);
    assert!(works, "{said}");
}
