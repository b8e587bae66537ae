//! The VMM on its own, as people start it with `orlop run`.

mod common;
mod guest;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::stage;
use guest::{COMMAND_LINE, Guest, Kernel, LIMIT, control, orlop};
use orlop_proto::vmm::v1::{
    DescribeRequest, KillRequest, Outcome, PauseRequest, ResumeRequest, ShutdownRequest, VmState,
    WaitRequest,
};
use orlop_testbed::containerd::ctr::Running;
use sha2::{Digest as _, Sha256};

#[test]
fn a_debian_kernel_boots_from_its_elf_image() {
    boots(Kernel::Vmlinux, 1);
}

#[test]
fn a_debian_kernel_boots_from_its_elf_image_on_two_processors() {
    boots(Kernel::Vmlinux, 2);
}

#[test]
fn a_kernel_without_a_pvh_entry_point_boots_at_its_own() {
    boots(Kernel::WithoutPvh, 1);
}

#[test]
fn a_debian_kernel_boots_as_it_is_packaged() {
    boots(Kernel::BzImage, 1);
}

#[test]
fn a_debian_kernel_boots_as_it_is_packaged_on_two_processors() {
    boots(Kernel::BzImage, 2);
}

fn boots(kernel: Kernel, cpus: u32) {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(kernel, "echo processors $(nproc); poweroff -f");
    let ended = guest.run(&["--cpus", &cpus.to_string()]);
    assert!(
        ended.output().contains(&format!("processors {cpus}\r\n")),
        "{ended:?}"
    );
    assert_eq!(ended.status, 0, "powered off: {}", ended.error());
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_that_resets_itself_is_told_by_status_3() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "reboot -f");
    let ended = guest.run(&["--no-reboot"]);
    assert_eq!(ended.status, 3, "{}", ended.error());
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_that_resets_itself_boots_again_with_the_same_disks() {
    boots_thrice(|guest, disk| guest.command(&["--disk", disk]));
}

#[test]
fn a_guest_boots_again_from_files_that_were_opened_for_its_vmm() {
    boots_thrice(|guest, disk| {
        let (kernel, initramfs) = (guest.kernel().to_owned(), guest.path("initramfs"));
        // The initramfs is nowhere by the time that the VMM might look for it.
        let script = r#"exec 3<"$1" 4<"$2"; rm "$2"; shift 2; exec "$@""#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(kernel)
            .arg(initramfs);
        let vmm = orlop();
        command.arg(vmm.get_program());
        command.args(["run", "--name", "story", "--console", "stdio"]);
        command.args(["--kernel", "fd=3", "--initramfs", "fd=4"]);
        command.args(["--cmdline", COMMAND_LINE, "--disk", disk]);
        command
    });
}

#[test]
fn a_guest_reads_a_file_as_persistent_memory_and_cannot_write_it() {
    let Some(stage) = stage() else { return };
    // By the memory map of either way of booting.
    let script = "dd if=/dev/pmem0 bs=1000 count=6 iflag=fullblock 2>/dev/null | sha256sum; \
                  tail -c +6001 /dev/pmem0 | tr -d '\\0' | wc -c; \
                  dd if=/dev/zero of=/dev/pmem0 oflag=direct bs=4096 count=1 2>/dev/null; echo goes on; poweroff -f";
    for kernel in [Kernel::Own, Kernel::OwnBzImage] {
        let guest = Guest::new(kernel, script);
        let file = guest.path("content");
        let content: Vec<u8> = (0..6000_u32).map(|n| (n * n % 251) as u8).collect();
        fs::write(&file, &content).unwrap();
        let ended = guest.run(&["--pmem", &file.display().to_string()]);
        assert_eq!(ended.status, 0, "{}", ended.error());
        let digest = Sha256::digest(&content);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let wanted = format!("{digest}  -\r\n0\r\ngoes on\r\n");
        assert!(ended.output().contains(&wanted), "{ended:?}");
        assert!(fs::read(&file).unwrap() == content, "it was written to");
    }
    stage.leaves_nothing();
}

/// A guest counts on its disk how often it has booted.
fn boots_thrice(command: impl FnOnce(&Guest, &str) -> Command) {
    let Some(stage) = stage() else { return };
    let script = "load virtio_blk; read mark </dev/vda; echo mark $mark; \
                  [ \"$mark\" = 2 ] && poweroff -f; \
                  echo $((mark + 1)) | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null; reboot -f";
    let guest = Guest::new(Kernel::Own, script);
    let disk = guest.path("disk");
    let mut content = vec![b'\n'; 1 << 20];
    content[0] = b'0';
    fs::write(&disk, &content).unwrap();
    let command = command(&guest, &format!("path={}", disk.display()));
    let running = Running::start(command, &[]).unwrap();
    let ended = running.wait(LIMIT).unwrap();
    assert_eq!(ended.status, 0, "{}", ended.error());
    let marks = ["mark 0\r\n", "mark 1\r\n", "mark 2\r\n"];
    let output = ended.output();
    let places: Vec<_> = marks.iter().map(|mark| output.find(mark)).collect();
    assert!(places.iter().all(Option::is_some), "{ended:?}");
    assert!(places.is_sorted(), "{ended:?}");
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_whose_kernel_panics_is_told_by_status_5() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(
        Kernel::Vmlinux,
        "load pvpanic_mmio; echo c >/proc/sysrq-trigger",
    );
    let ended = guest.run(&[]);
    assert_eq!(ended.status, 5, "{}", ended.error());
    assert!(ended.error().contains("panicked"), "{}", ended.error());
    assert!(ended.output().contains("Kernel panic"), "{ended:?}");
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_reads_and_writes_its_disks() {
    let Some(stage) = stage() else { return };
    let script = "load virtio_blk; head -c 6 /dev/vda; echo; \
                  echo written | dd of=/dev/vda bs=512 seek=2 conv=fsync,notrunc 2>/dev/null; \
                  echo size $(blockdev --getsize64 /dev/vda); \
                  echo no >/dev/vdb && echo read-only disk written; poweroff -f";
    let guest = Guest::new(Kernel::Own, script);
    let (disk, fixed) = (guest.path("disk"), guest.path("fixed"));
    let mut content = vec![0; 1 << 20];
    content[..6].copy_from_slice(b"hello\n");
    fs::write(&disk, &content).unwrap();
    fs::write(&fixed, &content).unwrap();
    let ended = guest.run(&[
        "--disk",
        &format!("path={}", disk.display()),
        "--disk",
        &format!("path={},readonly", fixed.display()),
    ]);
    let output = ended.output();
    assert!(output.contains("hello\r\n"), "{ended:?}");
    assert!(output.contains("size 1048576\r\n"), "{ended:?}");
    assert!(!output.contains("read-only disk written"), "{ended:?}");
    assert_eq!(&fs::read(&disk).unwrap()[1024..1032], b"written\n");
    assert_eq!(fs::read(&fixed).unwrap(), content);
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_has_random_numbers_from_the_host() {
    let Some(stage) = stage() else { return };
    let script = "load virtio_rng; cat /sys/class/misc/hw_random/rng_current; \
                  echo bytes $(head -c 64 /dev/hwrng | wc -c); poweroff -f";
    let guest = Guest::new(Kernel::Own, script);
    let ended = guest.run(&[]);
    assert!(ended.output().contains("virtio_rng"), "{ended:?}");
    assert!(ended.output().contains("bytes 64\r\n"), "{ended:?}");
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_vm_is_described_paused_resumed_and_killed_through_its_control_socket() {
    let Some(stage) = stage() else { return };
    let script = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.2; done";
    let guest = Guest::new(Kernel::Own, script);
    let console = guest.path("console");
    let socket = guest.path("control");
    let running = guest.start(&[
        "--name",
        "ticker",
        "--cpus",
        "2",
        "--console",
        &format!("file={}", console.display()),
        "--api-socket",
        socket.to_str().unwrap(),
    ]);
    let ticks = || {
        let text = fs::read(&console).unwrap_or_default();
        String::from_utf8_lossy(&text).matches("tick ").count()
    };
    guest::until("the guest ticks", || ticks() > 0);

    let wait = std::thread::spawn({
        let socket = socket.clone();
        move || control(&socket, async |mut vm| vm.wait(WaitRequest {}).await)
    });
    let describe = || {
        control(&socket, async |mut vm| {
            vm.describe(DescribeRequest {}).await
        })
    };
    let vm = describe().unwrap();
    assert_eq!(vm.name, "ticker");
    assert_eq!(vm.vcpus, 2);
    assert_eq!(vm.memory_bytes, 256 << 20);
    assert_eq!(vm.pid, running.id());
    assert_eq!(vm.state(), VmState::Running);
    assert!(
        vm.devices.iter().any(|device| device.kind == "virtio-rng"),
        "{vm:?}"
    );

    control(&socket, async |mut vm| vm.pause(PauseRequest {}).await).unwrap();
    assert_eq!(describe().unwrap().state(), VmState::Paused);
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ticks(), before, "the guest goes on while paused");

    control(&socket, async |mut vm| vm.resume(ResumeRequest {}).await).unwrap();
    assert_eq!(describe().unwrap().state(), VmState::Running);
    guest::until("the guest goes on", || ticks() > before);

    // The answer to Kill may be lost with the VM.
    let _ = control(&socket, async |mut vm| vm.kill(KillRequest {}).await);
    assert_eq!(running.wait(guest::LIMIT).unwrap().status, 137);
    let ended = wait.join().unwrap().unwrap();
    assert_eq!(ended.outcome(), Outcome::Killed, "{}", ended.message);
    assert!(!socket.exists(), "the socket is left");
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_powers_off_when_its_power_button_is_pressed() {
    let Some(stage) = stage() else { return };
    let script = "load button; load evdev; echo listening; \
                  head -c 24 /dev/input/event0 >/dev/null && echo pressed; poweroff -f";
    let guest = Guest::new(Kernel::Own, script);
    let console = guest.path("console");
    let socket = guest.path("control");
    let running = guest.start(&[
        "--console",
        &format!("file={}", console.display()),
        "--api-socket",
        socket.to_str().unwrap(),
    ]);
    let said = || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
    guest::until("the guest listens", || said().contains("listening"));
    // It has said so just before it opened the device.
    std::thread::sleep(Duration::from_secs(2));
    control(&socket, async |mut vm| {
        vm.shutdown(ShutdownRequest {}).await
    })
    .unwrap();
    assert_eq!(running.wait(guest::LIMIT).unwrap().status, 0, "{}", said());
    assert!(said().contains("pressed"), "{}", said());
    drop(guest);
    stage.leaves_nothing();
}
