//! Orlop's command line.

use std::path::Path;
use std::process::Command;

use super::{CID, Content, Devices, Guest, TAG};

pub fn command(program: &Path, guest: &Guest) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--cpus", &guest.vcpus.to_string()]);
    command.args(["--memory", &format!("{}M", guest.memory_mib)]);
    command.arg("--kernel").arg(&guest.kernel);
    command.args(["--cmdline", &guest.command_line()]);
    match &guest.content {
        Content::Nothing => {}
        Content::Initramfs(initramfs) => {
            command.arg("--initramfs").arg(initramfs);
        }
        Content::Devices(devices) => add(&mut command, devices),
    }
    command
}

fn add(command: &mut Command, devices: &Devices) {
    command.args([
        format!("--disk=path={},readonly", devices.root.display()),
        format!("--disk=path={}", devices.disk.display()),
        format!("--net=tap={},vhost=on", devices.tap),
        format!("--vsock=socket={},cid={CID}", devices.vsock.display()),
        format!("--fs=tag={TAG},socket={}", devices.fs.display()),
    ]);
}
