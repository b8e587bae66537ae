//! QEMU's command lines, each machine in its quickest setting.

use std::process::Command;

use orlop_testbed::host::emulator::Emulator;

use super::{CID, Content, Devices, Guest, TAG};

/// No PIT and no PIC, whose work the local APIC and the KVM clock do; its RTC, for a kernel without one waits for it. Without devices no ACPI tables to make, and no
/// option ROMs, without which there can be none. Our kernel boots sooner so, but finds no timer, and nothing in the guest ever wakes up by itself. With devices PCI
/// Express, which it finds by ACPI.
pub fn microvm(emulator: &Emulator, guest: &Guest) -> Command {
    let further = match guest.content {
        Content::Devices(_) => "acpi=on,pcie=on",
        Content::Nothing | Content::Initramfs(_) if guest.needs_timer => "acpi=on",
        Content::Nothing | Content::Initramfs(_) => "acpi=off,x-option-roms=off",
    };
    let machine = format!("microvm,rtc=on,pit=off,pic=off,{further}");
    command(emulator, guest, &machine)
}

/// Interrupts by the kernel; none of the devices that are there if nobody asks for them.
pub fn q35(emulator: &Emulator, guest: &Guest) -> Command {
    command(emulator, guest, "q35,hpet=off,smbus=off,sata=off")
}

fn command(emulator: &Emulator, guest: &Guest, machine: &str) -> Command {
    let mut command = emulator.command();
    command.args(["-M", &format!("{machine},accel=kvm")]);
    command.args(["-cpu", "host", "-smp", &guest.vcpus.to_string()]);
    command.args(["-m", &format!("{}M", guest.memory_mib)]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&guest.kernel);
    command.args(["-append", &guest.command_line()]);
    match &guest.content {
        Content::Nothing => {}
        Content::Initramfs(initramfs) => {
            command.arg("-initrd").arg(initramfs);
        }
        Content::Devices(devices) => add(&mut command, guest.memory_mib, devices),
    }
    command
}

/// virtio over PCI without what only old drivers want. A disk has a thread of its own and io_uring, a card has vhost-net, and RAM is shared
/// with virtiofsd.
fn add(command: &mut Command, memory_mib: u64, devices: &Devices) {
    let mut option = |name: &str, value: String| {
        command.args([name, &value]);
    };
    option(
        "-object",
        format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
    );
    option("-machine", "memory-backend=ram".into());
    option("-object", "iothread,id=io".into());
    for (id, path, readonly) in [
        ("root", &devices.root, "on"),
        ("disk", &devices.disk, "off"),
    ] {
        option(
            "-drive",
            format!(
                "if=none,id={id},format=raw,aio=io_uring,readonly={readonly},file={}",
                path.display()
            ),
        );
        option(
            "-device",
            format!("virtio-blk-pci,drive={id},iothread=io,disable-legacy=on"),
        );
    }
    option(
        "-netdev",
        format!(
            "tap,id=net,ifname={},script=no,downscript=no,vhost=on",
            devices.tap
        ),
    );
    option(
        "-device",
        "virtio-net-pci,netdev=net,disable-legacy=on,romfile=".into(),
    );
    option("-device", format!("vhost-vsock-pci,guest-cid={CID}"));
    option(
        "-chardev",
        format!("socket,id=fs,path={}", devices.fs.display()),
    );
    option("-device", format!("vhost-user-fs-pci,chardev=fs,tag={TAG}"));
}
