//! Whether what is mounted below one of a container's mounts is passed on: each has its own word for it in the spec (`mounts[].options`),
//! which libcontainer passes over. It is given to them in a container that has been made and whose program waits to be started.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{Mount, Spec};

/// The options. One that begins with `r` is for what is mounted below as well.
const OPTIONS: [(&str, MsFlags); 4] = [
    ("shared", MsFlags::MS_SHARED),
    ("slave", MsFlags::MS_SLAVE),
    ("private", MsFlags::MS_PRIVATE),
    ("unbindable", MsFlags::MS_UNBINDABLE),
];

/// Gives them to the mounts of the container whose process is `pid`. This program has one thread, and is in its own mount namespace again afterwards.
///
/// # Errors
/// In one line, what the system says and of which mount.
pub fn set(pid: i32, spec: &Spec) -> Result<(), String> {
    let mounts = spec.mounts().iter().flatten();
    let wanted: Vec<_> = mounts
        .filter_map(|mount| Some((mount.destination().as_path(), of(mount)?)))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let namespace = |process: &str| {
        let path = format!("/proc/{process}/ns/mnt");
        File::open(&path).map_err(|error| format!("{path}: {error}"))
    };
    let (own, container) = (namespace("self")?, namespace(&pid.to_string())?);
    enter(&container)?;
    let set = wanted
        .iter()
        .try_for_each(|(at, flags)| set_one(at, *flags));
    enter(&own)?;
    set
}

fn enter(namespace: &File) -> Result<(), String> {
    setns(namespace, CloneFlags::CLONE_NEWNS)
        .map_err(|errno| format!("cannot enter a mount namespace: {}", errno.desc()))
}

fn set_one(at: &Path, flags: MsFlags) -> Result<(), String> {
    match mount(None::<&str>, at, None::<&str>, flags, None::<&str>) {
        // A later mount lies above it, so that nobody comes to it.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(format!(
            "the propagation of the mount at {}: {}",
            at.display(),
            errno.desc().to_lowercase()
        )),
    }
}

/// The last word of a mount's options counts, as with mount(8).
fn of(mount: &Mount) -> Option<MsFlags> {
    mount.options().iter().flatten().rev().find_map(|option| {
        let flag = |word: &str| OPTIONS.iter().find(|(known, _)| *known == word);
        let recursive = || option.strip_prefix('r').and_then(flag);
        flag(option)
            .map(|(_, flag)| *flag)
            .or_else(|| recursive().map(|(_, flag)| *flag | MsFlags::MS_REC))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        for (options, flags) in [
            (&["rbind", "ro"][..], None),
            (
                &["rbind", "rslave"],
                Some(MsFlags::MS_SLAVE | MsFlags::MS_REC),
            ),
            (&["shared", "bind", "private"], Some(MsFlags::MS_PRIVATE)),
            (
                &["runbindable"],
                Some(MsFlags::MS_UNBINDABLE | MsFlags::MS_REC),
            ),
            (
                &["rshared", "rw"],
                Some(MsFlags::MS_SHARED | MsFlags::MS_REC),
            ),
        ] {
            let mut mount = Mount::default();
            mount.set_options(Some(options.iter().map(|&it| it.to_owned()).collect()));
            assert_eq!(of(&mount), flags, "{options:?}");
        }
    }
}
