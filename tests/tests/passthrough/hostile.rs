//! A guest that writes nonsense to its device's configuration space, moves its BARs onto each other and onto memory, and writes beyond the
//! table of MSI-X.

use orlop_testbed::host::devices::{CARD, DISK};
use orlop_testbed::stories::size;

use super::guest::held::Held;
use super::pci::{self, HostDisk};
use super::{FOR_DISKS, stage, start};

#[test]
fn a_guest_that_means_harm_to_a_device_harms_nobody_else() {
    let Some(stage) = stage() else { return };
    let rounds = size(150, 5000);
    for address in [DISK, CARD] {
        pci::give(address, Some("vfio-pci"));
    }
    let script = format!(
        "load virtio_blk; mkdir /ram; mount -t tmpfs ram /ram
         random() {{ n=$(head -c 4 /dev/urandom | od -An -tu4); echo $((n % $1)); }}
         put() {{ printf \"$3\" | dd of=$1/config bs=1 seek=$2 conv=notrunc 2>/dev/null; }}
         for d in /sys/bus/pci/devices/*; do
           case $(cat $d/vendor):$(cat $d/device) in 0x1b36:0x0010) disk=$d;; 0x8086:0x10d3) card=$d;; esac
         done
         [ -n \"$disk\" ] && [ -n \"$card\" ] && echo found both
         echo ${{disk##*/}} >$disk/driver/unbind
         table=$(head -n 1 $disk/resource | cut -d ' ' -f 1)
         echo 1 >$disk/enable; echo 1 >$card/enable
         # The table of messages, its end, and what is behind it.
         for at in 0 4 12 16 1036 1040 2044 4092; do for value in 0 0xffffffff 0xfee00000; do
           devmem $((table + 0x2000 + at)) 32 $value; devmem $((table + 0x2000 + at)) 64 $value; devmem $((table + 0x3000 + at)) 16 1
         done; done 2>/dev/null
         # Onto each other, onto memory, onto the interrupt controllers, and out of all that there is.
         for place in '\\000\\000\\000\\300' '\\000\\000\\000\\000' '\\000\\000\\020\\000' '\\000\\000\\300\\376' '\\000\\000\\340\\376' '\\377\\377\\377\\377'; do
           for d in $disk $card; do for bar in 16 20 24 28 32 36 48; do put $d $bar $place; done; put $d 4 '\\007'; done
         done
         echo moved
         i=0; while [ $i -lt {rounds} ]; do
           for d in $disk $card; do
             at=$(random 4096); len=$(random 9)
             head -c $len /dev/urandom | dd of=$d/config bs=$((len + 1)) seek=$at oflag=seek_bytes conv=notrunc 2>/dev/null
             dd if=$d/config bs=8 count=1 skip=$(random 512) of=/dev/null 2>/dev/null
           done
           i=$((i + 1))
           [ $((i % 50)) = 0 ] && echo round $i
         done
         head -c 1048576 /dev/urandom >/ram/data
         dd if=/ram/data of=/dev/vda bs=64k oflag=direct 2>/dev/null; dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | cmp - /ram/data && echo unharmed
         while :; do sleep 1; done"
    );
    let devices = [DISK, CARD].map(|address| format!("--device={address}"));
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = format!("--disk=path={}", image.path().display());
    let vm = start(FOR_DISKS, &script, &[&devices[0], &devices[1], &disk]);
    vm.says("found both");
    vm.says("moved");
    let before = Held::by_vmm(vm.id());
    vm.says("unharmed");
    let after = Held::by_vmm(vm.id());
    println!("before {before:?}, after {after:?}");
    assert!(after.descriptors <= before.descriptors + 4);
    assert_eq!(after.threads, before.threads);
    let log = vm.kill().error();
    assert!(!log.contains("panicked"), "{log}");
    println!("{} lines of log", log.lines().count());
    HostDisk::take(DISK).works();
    pci::give(CARD, Some("e1000e"));
    pci::release(CARD);
    drop(image);
    stage.leaves_nothing();
}
