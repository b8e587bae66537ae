//! Mounts as containerd's snapshotters write them: a type, a source, and options in the manner of fstab.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use nix::mount::MsFlags;

use super::MountError;

/// A mount, as mount(2) takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// The file system's type.
    pub kind: String,
    /// What is mounted.
    pub source: PathBuf,
    /// Flags; `MS_BIND` for a bind mount.
    pub flags: MsFlags,
    /// The file system's own options.
    pub data: String,
}

impl MountRequest {
    /// Reads a mount of containerd's.
    ///
    /// # Errors
    /// When it has an option that means more than a flag or an option of the file system.
    pub fn parse(mount: &Mount) -> Result<Self, MountError> {
        let mut request = Self {
            kind: mount.type_.clone(),
            source: PathBuf::from(&mount.source),
            flags: MsFlags::empty(),
            data: String::new(),
        };
        if mount.type_ == "bind" {
            request.flags |= MsFlags::MS_BIND;
        }
        for option in &mount.options {
            request.option(option)?;
        }
        Ok(request)
    }

    fn option(&mut self, option: &str) -> Result<(), MountError> {
        let (set, flag) = match option {
            "" | "defaults" | "rw" | "suid" | "dev" | "exec" | "async" => return Ok(()),
            "ro" => (true, MsFlags::MS_RDONLY),
            "bind" => (true, MsFlags::MS_BIND),
            "rbind" => (true, MsFlags::MS_BIND | MsFlags::MS_REC),
            "nosuid" => (true, MsFlags::MS_NOSUID),
            "nodev" => (true, MsFlags::MS_NODEV),
            "noexec" => (true, MsFlags::MS_NOEXEC),
            "sync" => (true, MsFlags::MS_SYNCHRONOUS),
            "dirsync" => (true, MsFlags::MS_DIRSYNC),
            "mand" => (true, MsFlags::MS_MANDLOCK),
            "nomand" => (false, MsFlags::MS_MANDLOCK),
            "noatime" => (true, MsFlags::MS_NOATIME),
            "atime" => (false, MsFlags::MS_NOATIME),
            "nodiratime" => (true, MsFlags::MS_NODIRATIME),
            "diratime" => (false, MsFlags::MS_NODIRATIME),
            "relatime" => (true, MsFlags::MS_RELATIME),
            "norelatime" => (false, MsFlags::MS_RELATIME),
            "strictatime" => (true, MsFlags::MS_STRICTATIME),
            "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
            // These ask the mounter for work of its own: a loop device, an id mapping, a step to come first.
            "loop" => return Err(MountError::Option(option.to_owned())),
            other
                if other.starts_with("X-")
                    || other.starts_with("uidmap=")
                    || other.starts_with("gidmap=") =>
            {
                return Err(MountError::Option(option.to_owned()));
            }
            other => {
                if !self.data.is_empty() {
                    self.data.push(',');
                }
                self.data.push_str(other);
                return Ok(());
            }
        };
        self.flags.set(flag, set);
        Ok(())
    }
}

/// Shortens the paths of overlayfs options by the directory that all layers share. Answers that directory, and the
/// options with the layers relative to it; the upper and work directories stay as they are.
pub fn shorten_layers(data: &str) -> Option<(PathBuf, String)> {
    let options: Vec<&str> = data.split(',').collect();
    let layers: Vec<&Path> = options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?
        .split(':')
        .map(Path::new)
        .collect();
    let mut base = layers.first()?.parent()?;
    while !layers.iter().all(|layer| layer.starts_with(base)) {
        base = base.parent()?;
    }
    if !base.is_absolute() {
        return None;
    }
    let short: Vec<String> = layers
        .iter()
        .map(|layer| Some(layer.strip_prefix(base).ok()?.to_str()?.to_owned()))
        .collect::<Option<_>>()?;
    // A layer that is the base itself would be an empty name.
    if short.iter().any(String::is_empty) {
        return None;
    }
    let lowerdir = format!("lowerdir={}", short.join(":"));
    let options: Vec<&str> = options
        .into_iter()
        .map(|option| {
            if option.starts_with("lowerdir=") {
                lowerdir.as_str()
            } else {
                option
            }
        })
        .collect();
    Some((base.into(), options.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, options: &[&str]) -> Result<MountRequest, MountError> {
        MountRequest::parse(&Mount {
            type_: kind.into(),
            source: "src".into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Default::default()
        })
    }

    #[test]
    fn an_overlay_keeps_its_options() {
        let request = parse("overlay", &["index=off", "ro", "lowerdir=/a:/b"]).unwrap();
        assert_eq!(request.data, "index=off,lowerdir=/a:/b");
        assert_eq!(request.flags, MsFlags::MS_RDONLY);
    }

    #[test]
    fn a_bind_is_a_flag() {
        let request = parse("bind", &["rbind", "ro"]).unwrap();
        assert!(
            request
                .flags
                .contains(MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY)
        );
        assert!(request.data.is_empty());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for option in ["loop", "X-containerd.mkdir.path=/x", "uidmap=0:1:1"] {
            let error = parse("ext4", &[option]).unwrap_err();
            assert!(error.to_string().contains(option), "{error}");
        }
    }

    #[test]
    fn layers_are_shortened_by_what_they_share() {
        let data =
            "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/snap/1/fs:/s/snap/22/fs";
        let (base, short) = shorten_layers(data).unwrap();
        assert_eq!(base, Path::new("/s/snap"));
        assert_eq!(
            short,
            "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=1/fs:22/fs"
        );
        assert!(shorten_layers("lowerdir=relative:paths").is_none());
        assert!(shorten_layers("size=1m").is_none());
    }
}
