//! A kernel for a virtual host or a guest: Debian's packaged kernel, unpacked into the cache and not installed, or one of our own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A kernel's files.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The `bzImage`.
    pub image: PathBuf,
    /// `lib/modules/VERSION`, with `modules.dep` in it. A kernel that has all it is to have built in has no modules.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// Finds the kernel with its modules in `root`, a directory in which a Debian kernel package was unpacked.
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
        let (image, modules) = (PathBuf::from(image), version.path());
        for needed in [&image, &modules.join("modules.dep")] {
            if !needed.is_file() {
                bail!("{} is missing", needed.display());
            }
        }
        Ok(Self {
            image,
            modules: Some(modules),
        })
    }
}
