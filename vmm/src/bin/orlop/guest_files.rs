//! The files that a guest with an agent boots from, as the shim's configuration names them.

use std::env;
use std::path::PathBuf;

use serde::Deserialize;

/// What the configuration says of them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct GuestFiles {
    kernel: Option<PathBuf>,
    image: Option<PathBuf>,
    initramfs: Option<PathBuf>,
}

impl GuestFiles {
    /// The kernel: unless it is said, that of this program's own release, or else the usual one.
    pub fn kernel(&self) -> PathBuf {
        found(self.kernel.as_ref(), "vmlinux")
    }

    /// The same for the initramfs.
    pub fn initramfs(&self) -> PathBuf {
        found(self.initramfs.as_ref(), "initramfs.cpio")
    }

    /// The image for that kernel, whose pages all guests share, if there is one. What goes with another kernel or agent has to be said.
    pub fn image(&self) -> Option<PathBuf> {
        let usual = self.kernel.is_none() && self.initramfs.is_none();
        let found = || Some(found(None, "agent.erofs")).filter(|_| usual);
        let exists = |image: &PathBuf| image.exists();
        self.image.clone().or_else(|| found().filter(exists))
    }
}

fn found(said: Option<&PathBuf>, name: &str) -> PathBuf {
    let of_release = || of_release(&format!("share/{name}"));
    said.cloned()
        .or_else(of_release)
        .unwrap_or_else(|| format!("/usr/share/orlop/{name}").into())
}

/// A file of the release that this program lies in.
pub fn of_release(file: &str) -> Option<PathBuf> {
    let orlop = env::current_exe().ok()?;
    let file = orlop.parent()?.parent()?.join(file);
    file.exists().then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_taken_and_an_image_is_not_taken_for_another_kernel() {
        let files: GuestFiles = toml::from_str("kernel = \"/k\"\ninitramfs = \"/i\"").unwrap();
        assert_eq!(files.kernel(), PathBuf::from("/k"));
        assert_eq!(files.initramfs(), PathBuf::from("/i"));
        assert_eq!(files.image(), None);
        let files: GuestFiles = toml::from_str("kernel = \"/k\"\nimage = \"/a\"").unwrap();
        assert_eq!(files.image(), Some("/a".into()));
        let files = GuestFiles::default();
        assert!(files.kernel().ends_with("vmlinux"));
        assert!(files.initramfs().ends_with("initramfs.cpio"));
    }
}
