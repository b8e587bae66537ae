//! A guest with an NVMe disk over two lives, and one with a network card.

use std::path::Path;
use std::process::Command;

use orlop_testbed::host::devices::{CARD, DISK, PEER, SIBLINGS, SOUND};
use orlop_testbed::stories::size;

use super::guest::Kernel;
use super::pci::{self, HostDisk};
use super::{FOR_DISKS, stage, start};

/// An address of the host's at the other end of the card's wire, and the guest's.
const HOST: &str = "10.11.0.1";
const GUEST: &str = "10.11.0.2";

/// The host's card, with its address.
struct Peer {
    name: String,
}

impl Peer {
    fn up() -> Self {
        pci::give(PEER, Some("e1000e"));
        let names = std::fs::read_dir(pci::path(PEER).join("net")).unwrap();
        let name = names.flatten().next().unwrap().file_name();
        let name = name.into_string().unwrap();
        let line = format!("ip addr add {HOST}/24 dev {name} && ip link set {name} up");
        let done = Command::new("sh").args(["-c", &line]).status();
        assert!(done.unwrap().success(), "{line}");
        Peer { name }
    }

    fn packets(&self) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/rx_packets", self.name);
        std::fs::read_to_string(path)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        pci::release(PEER);
    }
}

#[test]
fn a_disk_is_its_guests_over_two_lives_and_then_the_hosts() {
    let Some(stage) = stage() else { return };
    let bytes = size(8 << 20, 48 << 20);
    let (count, part) = (bytes >> 16, bytes >> 20);
    let script = format!(
        "until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
         mkdir /ram; mount -t tmpfs ram /ram
         if [ \"$(dd if=/dev/nvme0n1 bs=512 count=1 skip=131071 2>/dev/null | head -c 6)\" = second ]; then
           echo second life $(head -c {bytes} /dev/nvme0n1 | sha256sum)
           poweroff -f
         fi
         head -c {bytes} /dev/urandom >/ram/data
         dd if=/ram/data of=/dev/nvme0n1 bs=64k count={count} oflag=direct conv=fsync,notrunc 2>/dev/null && echo wrote {part}M
         dd if=/dev/nvme0n1 bs=64k count={count} iflag=direct 2>/dev/null | cmp - /ram/data && echo read it
         begun=$(cut -d ' ' -f 1 /proc/uptime); dd if=/dev/nvme0n1 of=/dev/null bs=64k count={count} iflag=direct 2>/dev/null
         echo read from $begun to $(cut -d ' ' -f 1 /proc/uptime)
         echo first life $(sha256sum </ram/data)
         grep nvme0q /proc/interrupts
         echo interrupts $(grep nvme0q /proc/interrupts | awk '{{ for (i = 2; i <= 3; i++) n += $i }} END {{ print n }}')
         printf second | dd of=/dev/nvme0n1 bs=512 seek=131071 conv=fsync,notrunc 2>/dev/null
         reboot -f"
    );
    let disk = HostDisk::take(DISK);
    disk.works();
    disk.give_away();
    let device = format!("--device={DISK}");
    let vm = start(FOR_DISKS, &script, &["--cpus=2", &device]);
    let interrupts = vm.says("interrupts ");
    let iommufd = Path::new("/dev/iommu");
    assert_eq!(
        pci::has_open(vm.id(), iommufd),
        iommufd.exists(),
        "the host's iommufd is used where it is there"
    );
    let taken = pci::interrupts(DISK);
    println!("{interrupts} interrupts in the guest, {taken} taken by the host");
    assert!(interrupts.parse::<u64>().unwrap() > count, "{}", vm.said());
    assert!(taken >= count, "{taken} interrupts were taken for it");
    let said = vm.said();
    assert!(said.contains("read it\r"), "{said}");
    let queues = said.lines().filter(|line| line.contains("nvme0q")).count();
    assert_eq!(queues, 3, "for orders, and one for each processor: {said}");
    let read = vm.says("read from ");
    let (first, second) = (vm.says("first life "), vm.says("second life "));
    assert_eq!(first, second, "{}", vm.said());
    vm.ends(0);
    let disk = HostDisk::take(DISK);
    assert!(first.starts_with(&disk.sum(bytes)), "{first}");
    let (begun, done) = read.split_once(" to ").unwrap();
    let in_guest = done.parse::<f64>().unwrap() - begun.parse::<f64>().unwrap();
    let in_host = disk.time(count).as_secs_f64();
    println!("{part} MiB read in {in_guest:.2} s by the guest, in {in_host:.2} s by the host");
    disk.works();
    drop(disk);
    stage.leaves_nothing();
}

#[test]
fn a_card_carries_its_guests_packets_and_functions_of_one_slot_stay_together() {
    let Some(stage) = stage() else { return };
    let script = format!(
        "load e1000e
         for d in /sys/bus/pci/devices/*; do echo function ${{d##*/}} $(cat $d/class); done
         for i in /sys/class/net/*; do [ $(cat $i/address) = 52:54:00:00:00:01 ] && card=${{i##*/}}; done
         ip addr add {GUEST}/24 dev $card; ip link set $card up
         n=0; until ping -c 1 -W 1 {HOST} >/dev/null; do n=$((n + 1)); [ $n -lt 60 ] || break; done
         ping -c 5 -s 1400 {HOST} | grep 'packets transmitted'
         grep $card /proc/interrupts
         echo pinged; poweroff -f"
    );
    let peer = Peer::up();
    let [first, second] = SIBLINGS;
    let given = [CARD, SOUND, first, second];
    for address in given {
        pci::give(address, Some("vfio-pci"));
    }
    let before = peer.packets();
    let devices = given.map(|address| format!("--device={address}"));
    let line: Vec<_> = devices.iter().map(String::as_str).collect();
    let vm = start(Kernel::Full, &script, &line);
    vm.says("pinged");
    let packets = peer.packets() - before;
    let said = vm.said();
    assert!(said.contains("5 packets received"), "{said}");
    assert!(packets >= 5, "{packets} packets came from the guest");
    // Two functions of one slot are that to the guest, too.
    let functions = said
        .lines()
        .filter_map(|line| line.strip_prefix("function "));
    let slots: Vec<_> = functions
        .filter_map(|line| line.trim().split_once(".1 "))
        .collect();
    let [(slot, "0x040300")] = slots[..] else {
        panic!("not one second function: {said}");
    };
    assert!(
        said.contains(&format!("function {slot}.0 0x0c0330")),
        "{said}"
    );
    vm.ends(0);
    for address in given {
        pci::release(address);
    }
    drop(peer);
    stage.leaves_nothing();
}
