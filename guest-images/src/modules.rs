//! Which kernel modules a guest needs, and the order in which they load.
//!
//! A directory `lib/modules/<version>` has two indices, made by depmod and by the kernel's build: `modules.dep`, where each
//! line is a module's file, a colon, and the files that it depends on, directly or not, the ones to load first standing last; and
//! `modules.builtin`, the modules that are part of the kernel already.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The modules that every guest needs, by name: virtio over PCI, the devices that Orlop offers, and the file systems of containers.
pub const GUEST: [&str; 14] = [
    "virtio_pci",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "erofs",
    "overlay",
    "button",
    "evdev",
    "pvpanic-mmio",
    "ptp_kvm",
];

/// Why modules were not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An index or a module could not be read.
    #[error("cannot read {}: {source}{}", path.display(), hint(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel lacks a module.
    #[error(
        "{}: kernel module {name} is neither there nor built in; use a kernel that has it", directory.display()
    )]
    Missing {
        /// The module.
        name: String,
        /// The directory that was searched.
        directory: PathBuf,
    },
    /// A module is compressed, which not every kernel can load.
    #[error("{}: compressed modules are not supported; unpack them and run depmod", .0.display())]
    Compressed(PathBuf),
    /// An index names a file outside of the directory.
    #[error("{}: modules.dep names {file}, which is not below this directory", directory.display())]
    Outside {
        /// The name as it stands there.
        file: String,
        /// The directory.
        directory: PathBuf,
    },
}

fn hint(path: &Path) -> &'static str {
    if path.ends_with("modules.dep") {
        "; it is made by `depmod -b ROOT VERSION`"
    } else {
        ""
    }
}

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name as lsmod prints it, for example `virtio_rng` for `virtio-rng.ko`.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

/// Finds the modules `wanted` in `directory` (`lib/modules/<version>`) with all that they depend on, in an order in which each
/// comes after its dependencies. Those that are built in are left out.
///
/// # Errors
/// When an index cannot be read, or a module is neither there nor built in.
pub fn resolve(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>, Error> {
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
    };
    let (dep, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let index = Index::parse(&dep, &builtin);
    let mut found = Vec::new();
    for file in index.order(wanted).map_err(|name| Error::Missing {
        name,
        directory: directory.to_owned(),
    })? {
        let outside = Path::new(file)
            .components()
            .any(|part| !matches!(part, std::path::Component::Normal(_)));
        if outside {
            return Err(Error::Outside {
                file: file.to_owned(),
                directory: directory.to_owned(),
            });
        }
        let path = directory.join(file);
        if path.extension().is_none_or(|extension| extension != "ko") {
            return Err(Error::Compressed(path));
        }
        found.push(Module {
            name: module_name(file),
            path,
        });
    }
    Ok(found)
}

struct Index<'a> {
    /// By name: the module's file, and the files that it depends on.
    loadable: HashMap<String, (&'a str, Vec<&'a str>)>,
    builtin: HashSet<String>,
}

impl<'a> Index<'a> {
    fn parse(dep: &'a str, builtin: &'a str) -> Self {
        let loadable = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, needs)| {
                (
                    module_name(file),
                    (file.trim(), needs.split_whitespace().collect()),
                )
            })
            .collect();
        let builtin = builtin.lines().map(module_name).collect();
        Self { loadable, builtin }
    }

    /// The files to load, in order; or the name of what is missing.
    fn order(&self, wanted: &[&str]) -> Result<Vec<&'a str>, String> {
        let mut seen = HashSet::new();
        let mut order = Vec::new();
        for name in wanted {
            let name = module_name(name);
            if self.builtin.contains(&name) {
                continue;
            }
            let Some((file, needs)) = self.loadable.get(&name) else {
                return Err(name);
            };
            // depmod lists the whole closure, and the deepest dependency last.
            for &file in needs.iter().rev().chain([file]) {
                if seen.insert(file) {
                    order.push(file);
                }
            }
        }
        Ok(order)
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko` is `virtio_rng`.
fn module_name(file: &str) -> String {
    let base = file.trim().rsplit('/').next().unwrap_or_default();
    base.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/legacy.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/legacy.ko:
kernel/drivers/char/virtio-rng.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/fs/squashed.ko.xz:
../../etc/passwd.ko:
";
    const BUILTIN: &str = "kernel/fs/fuse/virtiofs.ko\n";

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), DEP).unwrap();
        fs::write(dir.path().join("modules.builtin"), BUILTIN).unwrap();
        dir
    }

    fn names(wanted: &[&str]) -> Result<Vec<String>, Error> {
        let dir = directory();
        Ok(resolve(dir.path(), wanted)?
            .into_iter()
            .map(|module| module.name)
            .collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(
            names(&["virtio_pci", "virtiofs", "virtio_rng"]).unwrap(),
            [
                "virtio",
                "virtio_ring",
                "legacy",
                "virtio_pci",
                "virtio_rng"
            ]
        );
        // A dash in a name is as good as an underscore.
        assert_eq!(
            names(&["virtio-rng"]).unwrap(),
            ["virtio", "virtio_ring", "virtio_rng"]
        );
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = names(&["virtio_pci", "zfs"]).unwrap_err().to_string();
        assert!(error.contains("kernel module zfs is neither"), "{error}");
    }

    #[test]
    fn compressed_and_foreign_files_are_refused() {
        assert!(matches!(names(&["squashed"]), Err(Error::Compressed(_))));
        assert!(matches!(names(&["passwd"]), Err(Error::Outside { .. })));
    }

    #[test]
    fn a_directory_without_index_says_how_to_make_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = resolve(dir.path(), &["virtio"]).unwrap_err().to_string();
        assert!(error.contains("depmod"), "{error}");
    }
}
