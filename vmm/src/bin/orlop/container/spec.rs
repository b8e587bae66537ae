//! What the agent is told of a container: an OCI runtime spec made of an image's configuration and of the user's flags.

use anyhow::{Context as _, bail};
use orlop_vmm::oci::{Config, Kept, User};
use orlop_vmm::terminal::Size;
use serde_json::{Value, json};

use super::CONTAINER;
use super::flags::Flags;
use super::volume::Volumes;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Those that docker gives a container, which count on no hardware.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The spec of `image`'s container.
///
/// # Errors
/// When there is no command, or a user that the image does not know.
pub fn container(
    image: &Kept,
    flags: &Flags,
    volumes: &Volumes,
    name: &str,
) -> anyhow::Result<Value> {
    let mut mounts = mounts();
    mounts.extend(volumes.mounts(CONTAINER));
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": false},
        "hostname": name,
        "process": process(image, flags)?,
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    }))
}

fn process(image: &Kept, flags: &Flags) -> anyhow::Result<Value> {
    let config = &image.config;
    let text = flags
        .user
        .as_deref()
        .or(config.user.as_deref())
        .unwrap_or_default();
    let user = User::resolve(text, &image.passwd, &image.group)?;
    let root = user.uid == 0;
    let none: &[&str] = &[];
    let effective = if root { &CAPABILITIES } else { none };
    let said = flags.workdir.as_deref().or(config.working_dir.as_deref());
    let cwd = said.filter(|said| !said.is_empty()).unwrap_or("/");
    if !cwd.starts_with('/') {
        bail!("the working directory {cwd} is not an absolute path");
    }
    Ok(json!({
        "args": command(config, &flags.command)?,
        "terminal": flags.tty,
        "consoleSize": console_size(flags.tty),
        "cwd": cwd,
        "env": environment(config, flags, &user.home),
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "noNewPrivileges": false,
        "capabilities": {"bounding": CAPABILITIES, "effective": effective, "permitted": effective},
    }))
}

/// How large a process' terminal is to begin with: as large as ours.
pub fn console_size(tty: bool) -> Value {
    let size = if tty { Size::of_user() } else { None };
    size.map_or(
        Value::Null,
        |size| json!({"width": size.columns, "height": size.rows}),
    )
}

/// The entrypoint stays, the image's command gives way to the user's.
fn command(config: &Config, given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut command = config.entrypoint.clone().unwrap_or_default();
    if given.is_empty() {
        command.extend(config.cmd.clone().unwrap_or_default());
    } else {
        command.extend_from_slice(given);
    }
    command
        .first()
        .context("the image has no command: give one behind --")?;
    Ok(command)
}

/// The image's variables, and the user's in their place. One without a value has that of our environment, if it is set there.
fn environment(config: &Config, flags: &Flags, home: &str) -> Vec<String> {
    let mut all = vec![PATH.to_owned(), format!("HOME={home}")];
    if flags.tty {
        all.push("TERM=xterm".into());
    }
    all.extend(config.env.clone().unwrap_or_default());
    all.extend(flags.env.iter().filter_map(|variable| {
        match variable.contains('=') {
            true => Some(variable.clone()),
            false => std::env::var(variable)
                .ok()
                .map(|value| format!("{variable}={value}")),
        }
    }));
    let key = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut kept: Vec<String> = Vec::new();
    for variable in all {
        kept.retain(|earlier| key(earlier) != key(&variable));
        kept.push(variable);
    }
    kept
}

/// What every container has.
fn mounts() -> Vec<Value> {
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev/shm", "type": "bind", "source": "/run/orlop/shm", "options": ["rbind", "nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: crate::run::Arguments,
    }

    fn made(flags: &[&str]) -> anyhow::Result<Value> {
        let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        let image = Kept {
            id: "0".repeat(64),
            disk: "/disk".into(),
            config: Config {
                env: words(&["A=1", "B=2"]),
                entrypoint: words(&["/entry"]),
                cmd: words(&["by-default"]),
                user: Some("www".into()),
                working_dir: Some("/srv".into()),
            },
            passwd: "www:x:33:34::/var/www:\n".into(),
            group: String::new(),
        };
        let line = [&["run", "--image=i"], flags].concat();
        let line = Line::try_parse_from(line).unwrap();
        let flags = &line.run.container;
        container(&image, flags, &Volumes::default(), "c1")
    }

    #[test]
    fn the_image_says_what_the_user_leaves_open() {
        let process = made(&[]).unwrap()["process"].clone();
        assert_eq!(process["args"], json!(["/entry", "by-default"]));
        assert_eq!(process["cwd"], "/srv");
        assert_eq!(process["user"]["uid"], 33);
        assert_eq!(process["env"], json!([PATH, "HOME=/var/www", "A=1", "B=2"]));
        assert_eq!(process["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn the_user_has_the_last_word() {
        let flags = ["--env=A=9", "--user=0", "--workdir=/", "--", "x", "y"];
        let process = made(&flags).unwrap()["process"].clone();
        assert_eq!(process["args"], json!(["/entry", "x", "y"]));
        assert_eq!(process["cwd"], "/");
        assert_eq!(process["env"], json!([PATH, "HOME=/", "B=2", "A=9"]));
        assert!(made(&["--user=nobody"]).is_err());
        assert!(made(&["--workdir=srv"]).is_err());
    }
}
