//! How the agent comes into a pod's guest: by an image, whose pages all guests of a node share, or by an initramfs, which each unpacks for itself.
//!
//! An image is for the kernel that it was configured with. A kernel that a pod brings along may have less built in, so that it gets the initramfs.

use std::path::Path;

use orlop_proto::agent::IMAGE_CMDLINE;

use crate::config::Config;

/// The file that the agent is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentFile<'c> {
    /// A file system in persistent memory.
    Image(&'c Path),
    /// An archive that the kernel unpacks.
    Initramfs(&'c Path),
}

impl<'c> AgentFile<'c> {
    /// The one for a pod, which brings a kernel of its own or does not.
    pub fn of(config: &'c Config, own_kernel: bool) -> Self {
        match &config.image {
            Some(image) if !own_kernel => Self::Image(image),
            _ => Self::Initramfs(&config.initramfs),
        }
    }

    /// What the VMM is told: a flag and its value.
    pub fn argument(self) -> (&'static str, &'c Path) {
        match self {
            Self::Image(file) => ("--pmem", file),
            Self::Initramfs(file) => ("--initramfs", file),
        }
    }

    /// What the guest's kernel is told, if anything.
    pub fn cmdline(self) -> Option<&'static str> {
        match self {
            Self::Image(_) => Some(IMAGE_CMDLINE),
            Self::Initramfs(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_the_pods_own_has_the_initramfs() {
        let mut config = Config::default();
        let initramfs = ("--initramfs", Path::new("/usr/share/orlop/initramfs.cpio"));
        assert_eq!(AgentFile::of(&config, false).argument(), initramfs);
        config.image = Some("/i".into());
        let file = AgentFile::of(&config, false);
        assert_eq!(file.argument(), ("--pmem", Path::new("/i")));
        assert!(file.cmdline().is_some());
        let file = AgentFile::of(&config, true);
        assert_eq!((file.argument(), file.cmdline()), (initramfs, None));
    }
}
