//! `delete`: cleans up after a container whose shim may have died, from what is written on disk.
//!
//! containerd runs this when it has lost a shim, for each of its containers, and may run it again. So nothing here needs
//! anybody alive, a second time changes nothing, and it is over within seconds.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::address::ShimSocket;
use crate::bundle;
use crate::cli::Cli;
use crate::config::Config;
use crate::mounts::table;
use crate::network;
use crate::options;
use crate::sandbox::{Share, StateDir};
use crate::task::process::KILLED;

/// How long the pod's processes may take to end. containerd gives the command five seconds.
const KILL_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the command.
///
/// # Errors
/// When something of the container stays; the answer is printed all the same.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    // A configuration that has become wrong must not keep anybody from cleaning up.
    let bundle = std::path::absolute(cli.bundle.clone().unwrap_or_else(|| PathBuf::from(".")))?;
    let config = match options::left_in(&bundle) {
        Some(file) => Config::load_from(&file),
        None => Config::load(),
    };
    let config = config.unwrap_or_default();
    // Without a bundle that says otherwise, a container is its own pod; if it is not, there is no such state.
    let role = bundle::role(&bundle).unwrap_or(bundle::Role::Single);
    let sandbox = role.sandbox_id(&cli.id);
    let directory = StateDir::of(&config.state, &cli.namespace, sandbox);

    let cleaned = if sandbox == cli.id {
        let deadline = Instant::now() + KILL_TIMEOUT;
        directory.kill_processes(true, deadline);
        let socket = ShimSocket::of(&cli.address, &cli.namespace, sandbox);
        let _ = std::fs::remove_file(socket.path());
        if let Some(joined) = directory.load().ok().and_then(|state| state.network) {
            network::part(&joined);
        }
        let uncounted = remove_cgroup(&directory, deadline);
        directory.remove().and(uncounted)
    } else {
        Share::of(&directory).remove(&cli.id)
    };
    // containerd mounts nothing there for us, but says that a shim's delete leaves it unmounted.
    let unmounted = table::unmount_below(&bundle.join("rootfs"));

    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp::from(SystemTime::now())),
        ..DeleteResponse::default()
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(&response.write_to_bytes()?)?;
    stdout.flush()?;
    cleaned?;
    unmounted?;
    Ok(())
}

/// Removes the pod's cgroup, with whatever is still in it: the pod's processes have been killed, and no other belongs there.
fn remove_cgroup(directory: &StateDir, deadline: Instant) -> std::io::Result<()> {
    let Some(cgroup) = directory.load().ok().and_then(|state| state.cgroup) else {
        return Ok(());
    };
    cgroup.kill();
    cgroup.remove(deadline).map_err(std::io::Error::other)
}
