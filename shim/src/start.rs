//! `start`: answers the address of the shim that serves a container's pod, making that shim if need be.
//!
//! The socket is bound here and handed on, so containerd can connect as soon as it knows the address. The shim itself is
//! this program again, with the verb `serve`, in a session of its own and with nothing of containerd's left open:
//! containerd waits until the pipe that it reads this command's output from has closed.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};

use crate::address::ShimSocket;
use crate::bundle::{self, Role};
use crate::cli::Cli;
use crate::config::{CONFIG_VARIABLE, Config};
use crate::logging;
use crate::options::{self, Source, Told};
use crate::process::spawn::Inherited;
use crate::sandbox::StateDir;

/// Runs the command in the bundle's directory.
///
/// # Errors
/// When no shim can be made; the message is what containerd shows.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    let told = options::read(io::stdin(), &cli.namespace, &cli.id)?;
    let role = bundle::role_at_start(Path::new("."))?;
    let sandbox = role.sandbox_id(&cli.id);
    let socket = ShimSocket::of(&cli.address, &cli.namespace, sandbox);
    if matches!(role, Role::Workload { .. }) {
        if UnixStream::connect(socket.path()).is_err() {
            bail!("the shim of sandbox {sandbox} is gone: the pod must be made anew");
        }
        adopt_config(sandbox).context("cannot leave the configuration in the bundle")?;
    } else if UnixStream::connect(socket.path()).is_err() {
        // What is wrong with the configuration is best said here, where containerd listens.
        let (config, file) = config(&told)?;
        StateDir::of(&config.state, &cli.namespace, sandbox)
            .create()
            .context("cannot make the pod's state directory")?;
        let listener = bind(socket.path())
            .with_context(|| format!("cannot listen at {}", socket.path().display()))?;
        if let Err(error) = serve(cli, sandbox, listener, file.as_deref()) {
            let _ = fs::remove_file(socket.path());
            return Err(error).context("cannot start the shim's process");
        }
    }
    // containerd 1.x reads the address from here when it restarts.
    write_address(&socket.url()).context("cannot write the bundle's address file")?;
    let mut stdout = io::stdout();
    stdout.write_all(&options::answer(&socket.url(), &told)?)?;
    stdout.flush()?;
    Ok(())
}

/// The configuration of the handler that the pod came by, with the file in the bundle that says so to others; else the machine's.
fn config(told: &Told) -> anyhow::Result<(Config, Option<PathBuf>)> {
    let (text, name) = match &told.source {
        None => return Ok((Config::load()?, None)),
        Some(Source::File(path)) => (Config::read(path)?, path.clone()),
        Some(Source::Text(text)) => (
            text.clone(),
            PathBuf::from("in the runtime handler's options"),
        ),
    };
    let config = Config::of(&text, &name)?;
    let file = std::path::absolute(options::FILE)?;
    fs::write(&file, text).context("cannot leave the configuration in the bundle")?;
    Ok((config, Some(file)))
}

/// What a pod was made with is its containers' as well, for whoever cleans up after one: the bundles of a namespace are beside each other.
fn adopt_config(sandbox: &str) -> io::Result<()> {
    if let Some(file) = options::left_in(&Path::new("..").join(sandbox)) {
        fs::copy(file, options::FILE)?;
    }
    Ok(())
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)?;
    }
    // Nobody listens here: it is what a dead shim left.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

fn write_address(url: &str) -> io::Result<()> {
    fs::write(".address.new", url)?;
    fs::rename(".address.new", "address")
}

fn serve(
    cli: &Cli,
    sandbox: &str,
    listener: UnixListener,
    config: Option<&Path>,
) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args([
            "-namespace",
            &cli.namespace,
            "-id",
            sandbox,
            "-address",
            &cli.address,
        ])
        .args(cli.debug.then_some("-debug"))
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(match logging::open_fifo(Path::new("log")) {
            Some(fifo) => Stdio::from(fifo),
            None => Stdio::null(),
        });
    if let Some(file) = config {
        command.env(CONFIG_VARIABLE, file);
    }
    let mut inherited = Inherited::new(vec![OwnedFd::from(listener)]);
    let hook = move || {
        nix::unistd::setsid()?;
        inherited.pass_only()
    };
    // SAFETY: between fork and exec the hook makes system calls only: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(hook) };
    let shim = command.spawn()?;
    be_killed_before_containerd(shim.id());
    Ok(())
}

/// A shim that dies can be cleaned up after; containerd must not die in its place. Where this may not be set it is left.
fn be_killed_before_containerd(shim: u32) {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok();
    if let Some(own) = own.and_then(|score| score.trim().parse::<i32>().ok()) {
        let _ = fs::write(
            format!("/proc/{shim}/oom_score_adj"),
            own.saturating_add(1).min(1000).to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_dead_socket_is_replaced_by_one_for_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/socket");
        drop(bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "nobody listens");
        let _listener = bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
