//! Kernel modules of an unpacked kernel package: finding them, their dependencies, loading them.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The files to load, in order, for all of `names` to be there, of a kernel whose modules are in `root`. One without modules has everything.
///
/// # Errors
/// When the kernel has no such module, or what it has cannot be read.
pub fn to_load(root: Option<&Path>, names: &[&str]) -> Result<Vec<PathBuf>> {
    match root {
        Some(root) => Modules::read(root)?.in_load_order(names),
        None => Ok(Vec::new()),
    }
}

/// The modules of one kernel, by name.
#[derive(Debug)]
pub struct Modules {
    root: PathBuf,
    /// By name with underscores: the file, then the files of what it depends on, nearest first, as `modules.dep` has them.
    files: HashMap<String, Vec<String>>,
    builtin: Vec<String>,
}

impl Modules {
    /// Reads `modules.dep` in `root`, which is `lib/modules/VERSION` of a kernel.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join("modules.dep");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let builtin = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            files: parse(&text),
            builtin: builtin.lines().map(name_of).collect(),
        })
    }

    /// The files to load, in order, for all of `names` to be there. What is built into the kernel needs none.
    ///
    /// # Errors
    /// When this kernel has no such module.
    pub fn in_load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order: Vec<&str> = Vec::new();
        for name in names {
            let name = name.replace('-', "_");
            if self.builtin.contains(&name) {
                continue;
            }
            let files = self
                .files
                .get(&name)
                .with_context(|| format!("no module {name} in {}", self.root.display()))?;
            // The dependencies stand after the module, the deepest last.
            for file in files.iter().rev() {
                if !order.contains(&file.as_str()) {
                    order.push(file);
                }
            }
        }
        Ok(order.into_iter().map(|file| self.root.join(file)).collect())
    }
}

fn parse(text: &str) -> HashMap<String, Vec<String>> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| {
            let files = std::iter::once(file)
                .chain(needs.split_whitespace())
                .map(str::to_owned)
                .collect();
            (name_of(file), files)
        })
        .collect()
}

fn name_of(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// Loads one module into the running kernel. One that is loaded already is no error.
///
/// # Errors
/// When the file cannot be read, or the kernel refuses it.
pub fn load(file: &Path) -> io::Result<()> {
    let module = File::open(file)?;
    let no_parameters = CString::default();
    // SAFETY: the descriptor is open, the string is terminated, and the kernel keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            module.as_raw_fd(),
            no_parameters.as_ptr(),
            0,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        Modules {
            root: "/m".into(),
            files: parse(
                "k/9p.ko: k/9pnet.ko k/netfs.ko\nk/9pnet.ko:\nk/netfs.ko:\nk/kvm-amd.ko: k/kvm.ko\nk/kvm.ko:\n",
            ),
            builtin: vec!["virtio".into()],
        }
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let order = modules().in_load_order(&["9p", "9pnet"]).unwrap();
        assert_eq!(
            order,
            ["/m/k/netfs.ko", "/m/k/9pnet.ko", "/m/k/9p.ko"].map(PathBuf::from)
        );
    }

    #[test]
    fn dashes_and_underscores_are_the_same() {
        let order = modules().in_load_order(&["kvm_amd"]).unwrap();
        assert_eq!(order.last().unwrap(), Path::new("/m/k/kvm-amd.ko"));
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_what_is_unknown_is_an_error() {
        assert!(modules().in_load_order(&["virtio"]).unwrap().is_empty());
        assert!(modules().in_load_order(&["nothing"]).is_err());
    }
}
