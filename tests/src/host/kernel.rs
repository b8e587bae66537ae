//! The virtual host's kernel: Debian's packaged kernel, unpacked into the cache and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The `bzImage`.
    pub image: PathBuf,
    /// `lib/modules/VERSION`, with `modules.dep` in it.
    pub modules: PathBuf,
}

impl Kernel {
    /// Finds the kernel in `root`, a directory in which a Debian kernel package was unpacked.
    ///
    /// # Errors
    /// When there is not exactly one kernel with modules and their `modules.dep`.
    pub fn find(root: &Path) -> Result<Self> {
        let below = root.join("lib/modules");
        let versions: Vec<_> = fs::read_dir(&below)
            .with_context(|| format!("no kernel modules in {}", below.display()))?
            .collect::<Result<_, _>>()?;
        let [version] = versions.as_slice() else {
            bail!(
                "{} holds {} kernels where one is expected; delete {} and run setup again",
                below.display(),
                versions.len(),
                root.display()
            );
        };
        let mut image = root.join("boot/vmlinuz-").into_os_string();
        image.push(version.file_name());
        let found = Self {
            image: image.into(),
            modules: version.path(),
        };
        for needed in [&found.image, &found.modules.join("modules.dep")] {
            if !needed.is_file() {
                bail!("{} is missing", needed.display());
            }
        }
        Ok(found)
    }
}
