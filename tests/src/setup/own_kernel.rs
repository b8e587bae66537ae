//! The guest's kernel of our own. Its configuration is `guest-images/kernel/orlop.config`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::build;
use super::linux::Linux;
use crate::cache::Cache;

/// The configuration, in the source tree.
const CONFIG: &str = "guest-images/kernel/orlop.config";

/// Builds it, if need be. Returns its ELF file.
///
/// # Errors
/// When something is missing and cannot be installed, or a step fails.
pub fn build() -> Result<PathBuf> {
    let cache = Cache::open()?;
    Linux {
        name: "the guest's kernel of our own",
        config: config()?,
        about: CONFIG,
        directory: cache.own_kernel(),
    }
    .build()?;
    Ok(cache.own_vmlinux())
}

/// Its configuration.
pub(super) fn config() -> Result<String> {
    let path = build::source().join(CONFIG);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_configuration_is_where_it_is_looked_for() {
        assert!(config().unwrap().contains("CONFIG_VIRTIO_PCI=y\n"));
    }
}
