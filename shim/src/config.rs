//! The shim's configuration: a small TOML file, every key of which has a default.
//!
//! The file is the one that the runtime handler's options name, else the one that the environment variable `ORLOP_CONFIG` names, else
//! `/etc/orlop/config.toml` where that exists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::memory_size::MemorySize;
use crate::sandbox::size::{Bounds, LEAST_MEMORY, MOST_MEMORY, MOST_VCPUS, Size};
use crate::spec::Restricted;

/// The variable that names another file.
pub const CONFIG_VARIABLE: &str = "ORLOP_CONFIG";
/// Where a package has the image.
const IMAGE: &str = "/usr/share/orlop/agent.erofs";
const CONFIG_FILE: &str = "/etc/orlop/config.toml";

/// What a pod's VM is made of, and where its state is kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The VMM's binary. Default: `orlop` beside this program, else in PATH.
    pub vmm: PathBuf,
    /// The guest's kernel. Default: that of the shim's own release, else `/usr/share/orlop/vmlinux`.
    pub kernel: PathBuf,
    /// A file system that holds the agent, for `kernel`; all guests share its pages. Default: that of the shim's own release, else
    /// `/usr/share/orlop/agent.erofs`, if it is there and neither `kernel` nor `initramfs` is said.
    pub image: Option<PathBuf>,
    /// The guest's initramfs, which holds the agent: where there is no image, and for kernels that pods bring along. Default: that of the shim's own
    /// release, else `/usr/share/orlop/initramfs.cpio`.
    pub initramfs: PathBuf,
    /// The virtio-fs daemon. Default: that of the shim's own release, else `/usr/libexec/virtiofsd`, else `virtiofsd` in PATH.
    pub virtiofsd: PathBuf,
    /// The directory of the pods' state.
    pub state: PathBuf,
    /// The directory of what VMs that failed have said.
    pub logs: PathBuf,
    /// Virtual CPUs of a pod whose containers have no limits.
    pub vcpus: u32,
    /// Memory of a pod whose containers have no limits, with what the guest's kernel needs of it.
    pub memory: MemorySize,
    /// What the guest's kernel and agent need beside containers that have limits.
    pub guest_memory: MemorySize,
    /// The most vCPUs of a pod. Default: as many as the machine has processors.
    pub max_vcpus: Option<u32>,
    /// The most memory of a pod. Default: as much as the machine has.
    pub max_memory: Option<MemorySize>,
    /// Which annotations a pod may use that reach further than its size.
    pub allow_annotations: Vec<Restricted>,
    /// Seconds until a VM whose agent is not ready is given up.
    pub boot_timeout: u64,
    /// Appended to the guest's kernel command line.
    pub cmdline_extra: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vmm: PathBuf::from("orlop"),
            kernel: PathBuf::from("/usr/share/orlop/vmlinux"),
            image: None,
            initramfs: PathBuf::from("/usr/share/orlop/initramfs.cpio"),
            virtiofsd: PathBuf::from("virtiofsd"),
            state: PathBuf::from("/run/orlop"),
            logs: PathBuf::from("/var/log/orlop"),
            vcpus: 1,
            memory: MemorySize::of_mib(256),
            guest_memory: MemorySize::of_mib(36),
            max_vcpus: None,
            max_memory: None,
            allow_annotations: Vec::new(),
            boot_timeout: 30,
            cmdline_extra: String::new(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {} is wrong: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, in one line.
        message: String,
    },
    /// A value is out of its range.
    #[error("the configuration's {key} is {value}; it must be {must}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it was given.
        value: String,
        /// What it may be.
        must: &'static str,
    },
}

impl Config {
    /// Reads the configuration of this machine.
    ///
    /// # Errors
    /// When the file cannot be read or holds what it must not.
    pub fn load() -> Result<Self, ConfigError> {
        let named = std::env::var_os(CONFIG_VARIABLE).filter(|name| !name.is_empty());
        let path = named.as_ref().map_or(Path::new(CONFIG_FILE), Path::new);
        let text = match Self::read(path) {
            Ok(text) => text,
            Err(ConfigError::Read { source: error, .. })
                if named.is_none() && error.kind() == std::io::ErrorKind::NotFound =>
            {
                String::new()
            }
            Err(error) => return Err(error),
        };
        Self::of(&text, path)
    }

    /// The configuration that a runtime handler has in `file`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(file: &Path) -> Result<Self, ConfigError> {
        Self::of(&Self::read(file)?, file)
    }

    /// The text of the configuration in `file`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(file: &Path) -> Result<String, ConfigError> {
        std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            path: file.into(),
            source,
        })
    }

    /// The configuration that `text` is, which came from `file`.
    ///
    /// # Errors
    /// When it holds what it must not.
    pub fn of(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Self::parse(text, file)?.resolve()
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.into(),
            message: crate::codes::one_line(error.message()),
        })
    }

    fn resolve(self) -> Result<Self, ConfigError> {
        self.resolve_for(std::env::current_exe().ok().as_deref())
    }

    /// What is not said is taken from the release that `shim` lies in: a pod that began with one version goes on with its files, whichever
    /// version is installed meanwhile.
    fn resolve_for(mut self, shim: Option<&Path>) -> Result<Self, ConfigError> {
        let programs = shim.and_then(Path::parent);
        let release = programs.and_then(Path::parent);
        let packaged = Path::new("/usr/libexec/virtiofsd");
        let usual = Self::default();
        // It goes with the kernel and the agent that it was built with.
        if self.image.is_none() && self.kernel == usual.kernel && self.initramfs == usual.initramfs
        {
            let of_release = release.map(|at| at.join("share/agent.erofs"));
            let places = of_release.into_iter().chain([PathBuf::from(IMAGE)]);
            self.image = places.into_iter().find(|place| place.exists());
        }
        for (path, usual, places) in [
            (
                &mut self.vmm,
                &usual.vmm,
                [programs.map(|at| at.join("orlop")), None],
            ),
            (
                &mut self.kernel,
                &usual.kernel,
                [release.map(|at| at.join("share/vmlinux")), None],
            ),
            (
                &mut self.initramfs,
                &usual.initramfs,
                [release.map(|at| at.join("share/initramfs.cpio")), None],
            ),
            (
                &mut self.virtiofsd,
                &usual.virtiofsd,
                [
                    programs.map(|at| at.join("virtiofsd")),
                    Some(packaged.to_owned()),
                ],
            ),
        ] {
            if path == usual
                && let Some(place) = places.into_iter().flatten().find(|place| place.exists())
            {
                *path = place;
            }
        }
        let wrong = |key, value: &dyn std::fmt::Display, must| {
            Err(ConfigError::Value {
                key,
                value: value.to_string(),
                must,
            })
        };
        if !self.state.is_absolute() {
            return wrong("state", &self.state.display(), "an absolute path");
        }
        if !self.logs.is_absolute() {
            return wrong("logs", &self.logs.display(), "an absolute path");
        }
        if !(1..=MOST_VCPUS).contains(&self.vcpus) {
            return wrong("vcpus", &self.vcpus, "1 to 254");
        }
        if self
            .max_vcpus
            .is_some_and(|most| !(self.vcpus..=MOST_VCPUS).contains(&most))
        {
            let most = self.max_vcpus.unwrap_or_default();
            return wrong("max_vcpus", &most, "at least `vcpus`, and at most 254");
        }
        if !(LEAST_MEMORY..=MOST_MEMORY).contains(&self.memory) {
            return wrong("memory", &self.memory, "48M to 1T");
        }
        if let Some(most) = self.max_memory
            && !(self.memory..=MOST_MEMORY).contains(&most)
        {
            return wrong("max_memory", &most, "at least `memory`, and at most 1T");
        }
        if self.guest_memory > MOST_MEMORY {
            return wrong("guest_memory", &self.guest_memory, "at most 1T");
        }
        if !(1..=3600).contains(&self.boot_timeout) {
            return wrong("boot_timeout", &self.boot_timeout, "1 to 3600 seconds");
        }
        Ok(self)
    }

    /// How large pods may be on a machine that has `host`.
    pub fn bounds(&self, host: Size) -> Bounds {
        let most = Size {
            // The configuration's word on a pod without limits holds on the smallest machine.
            vcpus: self.max_vcpus.unwrap_or(host.vcpus.max(self.vcpus)),
            memory: self.max_memory.unwrap_or(host.memory.max(self.memory)),
        };
        Bounds {
            default: Size {
                vcpus: self.vcpus,
                memory: self.memory,
            },
            guest: self.guest_memory,
            most: Size {
                vcpus: most.vcpus.min(MOST_VCPUS),
                memory: most.memory.min(MOST_MEMORY),
            },
            host: Size {
                vcpus: host.vcpus.max(self.vcpus),
                memory: host.memory.max(self.memory),
            },
            room: None,
        }
    }

    /// How long a VM may take until its agent is ready.
    pub fn boot_timeout(&self) -> Duration {
        Duration::from_secs(self.boot_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_defaults() {
        let config = Config::parse("", Path::new("x")).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.boot_timeout(), Duration::from_secs(30));
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_it() {
        let error = Config::parse("kernal = \"/k\"", Path::new("/etc/x.toml")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/etc/x.toml") && text.contains("kernal"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn what_is_not_said_is_of_the_shims_own_release() {
        let release = tempfile::tempdir().unwrap();
        let files = [
            "bin/orlop",
            "bin/virtiofsd",
            "share/vmlinux",
            "share/initramfs.cpio",
            "share/agent.erofs",
        ];
        for directory in ["bin", "share"] {
            std::fs::create_dir(release.path().join(directory)).unwrap();
        }
        for file in files {
            std::fs::write(release.path().join(file), "").unwrap();
        }
        let shim = release.path().join("bin/containerd-shim-orlop-v2");
        let config = Config::parse("kernel = \"/k\"", Path::new("x")).unwrap();
        let config = config.resolve_for(Some(&shim)).unwrap();
        assert_eq!(config.kernel, Path::new("/k"));
        let found = [&config.vmm, &config.virtiofsd, &config.initramfs];
        let wanted = [files[0], files[1], files[3]].map(|file| release.path().join(file));
        assert_eq!(found, [&wanted[0], &wanted[1], &wanted[2]]);
        // The image is for the release's own kernel.
        assert_eq!(config.image, None);
        let config = Config::default().resolve_for(Some(&shim)).unwrap();
        assert_eq!(config.image, Some(release.path().join(files[4])));

        let elsewhere = Config::default().resolve_for(Some(Path::new("/nowhere/bin/shim")));
        assert_eq!(
            elsewhere.unwrap().initramfs,
            Path::new("/usr/share/orlop/initramfs.cpio")
        );
    }

    #[test]
    fn values_are_checked() {
        let parse = |text| Config::parse(text, Path::new("x")).unwrap().resolve();
        assert!(
            parse("vcpus = 0")
                .unwrap_err()
                .to_string()
                .contains("vcpus is 0")
        );
        assert!(parse("state = \"run\"").is_err());
        assert!(parse("boot_timeout = 0").is_err());
        for (text, hint) in [
            ("memory = \"16M\"", "memory is 16M; it must be 48M to 1T"),
            ("vcpus = 4\nmax_vcpus = 2", "max_vcpus is 2"),
            ("max_vcpus = 255", "max_vcpus is 255"),
            ("max_memory = \"128M\"", "max_memory is 128M"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        for text in ["memory = \"much\"", "allow_annotations = [\"vcpus\"]"] {
            assert!(Config::parse(text, Path::new("x")).is_err(), "{text}");
        }
        let config = parse("vmm = \"/opt/orlop\"\nmemory = \"1G\"").unwrap();
        assert_eq!(
            (config.vmm.to_str(), config.memory.mib()),
            (Some("/opt/orlop"), 1024)
        );
    }

    #[test]
    fn a_pod_may_have_the_machine_unless_the_configuration_says_less() {
        let host = Size {
            vcpus: 4,
            memory: MemorySize::of_mib(8192),
        };
        let most = |text| {
            Config::parse(text, Path::new("x"))
                .unwrap()
                .bounds(host)
                .most
        };
        assert_eq!(most(""), host);
        let less = most("max_vcpus = 2\nmax_memory = \"1G\"");
        assert_eq!((less.vcpus, less.memory.mib()), (2, 1024));
        let more = most("vcpus = 6\nmemory = \"16G\"");
        assert_eq!((more.vcpus, more.memory.mib()), (6, 16384));
    }
}
