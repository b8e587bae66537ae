//! Firecracker: a configuration file in place of a command line.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{CID, Content, Guest};

/// Without its API's socket, as it starts quickest. Its devices are on PCI, for our kernel has no driver for virtio's registers in memory.
///
/// # Errors
/// When its configuration cannot be written beside the guest's kernel.
pub fn command(program: &Path, guest: &Guest) -> Result<Command> {
    let file = guest.kernel.with_file_name("firecracker.json");
    fs::write(&file, configuration(guest).to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(program);
    command.args(["--no-api", "--id", "bench", "--config-file"]);
    command.arg(file);
    if matches!(guest.content, Content::Devices(_)) {
        command.arg("--enable-pci");
    }
    Ok(command)
}

/// Disks in the quickest way that it has, by io_uring.
fn configuration(guest: &Guest) -> Value {
    let (initramfs, devices) = match &guest.content {
        Content::Nothing => (None, None),
        Content::Initramfs(initramfs) => (Some(initramfs), None),
        Content::Devices(devices) => (None, Some(devices)),
    };
    let disk = |id: &str, path: &Path, readonly: bool| {
        json!({
            "drive_id": id,
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": readonly,
            "io_engine": "Async",
        })
    };
    let disks = devices.map(|devices| {
        [
            disk("root", &devices.root, true),
            disk("disk", &devices.disk, false),
        ]
    });
    let card = devices.map(|devices| json!({ "iface_id": "net", "host_dev_name": devices.tap }));
    json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "boot_args": guest.command_line(),
            "initrd_path": initramfs,
        },
        "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        "drives": disks.into_iter().flatten().collect::<Vec<_>>(),
        "network-interfaces": card.into_iter().collect::<Vec<_>>(),
        "vsock": devices.map(|devices| json!({ "guest_cid": CID, "uds_path": devices.vsock })),
    })
}
