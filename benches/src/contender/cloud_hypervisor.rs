//! Cloud Hypervisor's command line.

use std::path::Path;
use std::process::Command;

use super::{CID, Content, Devices, Guest, TAG};

/// Its console device is off, for the serial port is the console.
pub fn command(program: &Path, guest: &Guest) -> Command {
    let mut command = Command::new(program);
    command.args(["--serial", "tty", "--console", "off"]);
    command.args(["--cpus", &format!("boot={}", guest.vcpus)]);
    command.arg("--kernel").arg(&guest.kernel);
    command.args(["--cmdline", &guest.command_line()]);
    let mut memory = format!("size={}M", guest.memory_mib);
    match &guest.content {
        Content::Nothing => {}
        Content::Initramfs(initramfs) => {
            command.arg("--initramfs").arg(initramfs);
        }
        Content::Devices(devices) => {
            // For virtiofsd.
            memory.push_str(",shared=on");
            add(&mut command, devices);
        }
    }
    command.args(["--memory", &memory]);
    command
}

fn add(command: &mut Command, devices: &Devices) {
    command.args([
        "--disk".to_owned(),
        format!("path={},readonly=on,image_type=raw", devices.root.display()),
        format!("path={},image_type=raw", devices.disk.display()),
    ]);
    command.args(["--net", &format!("tap={}", devices.tap)]);
    command.args([
        "--vsock",
        &format!("cid={CID},socket={}", devices.vsock.display()),
    ]);
    command.args([
        "--fs",
        &format!("tag={TAG},socket={}", devices.fs.display()),
    ]);
}
