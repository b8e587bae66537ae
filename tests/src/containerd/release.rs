//! Which containerd: Debian's own, or one that was built for the testbed.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use crate::cache::Cache;
use crate::setup::go;

/// Names the directory of containerd's programs to the stories, where these are not Debian's.
pub(crate) const RELEASE_VARIABLE: &str = "ORLOP_TESTBED_CONTAINERD";

/// Names to the stories who makes their pods' sandboxes, where that is not [`Sandboxer::default`].
pub(crate) const SANDBOXER_VARIABLE: &str = "ORLOP_TESTBED_SANDBOXER";

/// Where Debian's package puts the network's plugins.
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";

/// The containerds that stories can be told with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Version {
    /// Debian 12's package
    #[default]
    #[value(name = "1.6")]
    Debian,
    /// The last of the 1.x, as in Debian 13 and many distributions of Kubernetes
    #[value(name = "1.7")]
    Last1,
    /// What a cluster of the testbed has
    #[value(name = "2")]
    Two,
}

/// Who makes the sandboxes of the pods of Orlop's handler, as containerd 2's configuration has it (`sandboxer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sandboxer {
    /// containerd, of a task of their own.
    #[default]
    Podsandbox,
    /// The shim, by the sandbox interface.
    Shim,
}

impl Sandboxer {
    /// What containerd's configuration calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Podsandbox => "podsandbox",
            Self::Shim => "shim",
        }
    }

    /// That of the stories.
    #[must_use]
    pub fn of_stories() -> Self {
        let is_shim = |value| value == Self::Shim.name();
        if env::var_os(SANDBOXER_VARIABLE).is_some_and(is_shim) {
            Self::Shim
        } else {
            Self::Podsandbox
        }
    }
}

impl Version {
    /// Finds its programs, or builds them.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn get(self) -> Result<Release> {
        let set = match self {
            Version::Debian => return Ok(Release::debian()),
            Version::Last1 => go::CONTAINERD_1,
            Version::Two => go::NODE,
        };
        Ok(Release::at(&go::build(&Cache::open()?, set)?))
    }
}

/// A containerd with its client, its shim for runc, and the plugins for its pods' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The directory of the programs: the first to be searched for one.
    pub(super) programs: PathBuf,
    /// The directory of the plugins.
    pub(super) plugins: PathBuf,
}

impl Release {
    /// The one that Debian's packages install.
    #[must_use]
    pub fn debian() -> Self {
        Self {
            programs: "/usr/bin".into(),
            plugins: DEBIAN_PLUGINS.into(),
        }
    }

    /// The one whose programs are in `directory`, with its own plugins or, where it has none, Debian's.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        // By a name that is only a plugin's: iproute2 has a `bridge` as well.
        let has_plugins = directory.join("host-local").exists();
        Self {
            programs: directory.to_owned(),
            plugins: if has_plugins {
                directory.to_owned()
            } else {
                DEBIAN_PLUGINS.into()
            },
        }
    }

    /// The one that the stories are told with.
    #[must_use]
    pub fn of_stories() -> Self {
        env::var_os(RELEASE_VARIABLE)
            .map_or_else(Self::debian, |directory| Self::at(Path::new(&directory)))
    }

    /// The directory of the programs.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    pub(super) fn containerd(&self) -> PathBuf {
        self.programs.join("containerd")
    }

    pub(super) fn ctr(&self) -> PathBuf {
        self.programs.join("ctr")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_those_beside_the_programs_or_debians() {
        let directory = tempfile::tempdir().unwrap();
        let release = Release::at(directory.path());
        assert_eq!(release.plugins, Path::new(DEBIAN_PLUGINS));
        assert_eq!(release.ctr(), directory.path().join("ctr"));
        std::fs::write(directory.path().join("host-local"), "").unwrap();
        assert_eq!(Release::at(directory.path()).plugins, directory.path());
        // Which is how the stories hear of Debian's.
        let debian = Release::debian();
        assert_eq!(Release::at(debian.programs()), debian);
    }
}
