//! The virtual host's kernel that has iommufd: none of Debian's has it, so it is built, once. `tests/host-kernel.config` has what it has beyond
//! the guest's kernel, all of it built in.

use std::collections::HashSet;
use std::fs;

use anyhow::{Context, Result};

use super::linux::Linux;
use super::{build, own_kernel};
use crate::cache::Cache;
use crate::host::HostKernel;
use crate::host::kernel::Kernel;

/// The configuration, in the source tree.
const CONFIG: &str = "tests/host-kernel.config";

/// Builds it, if need be.
///
/// # Errors
/// When something is missing and cannot be installed, or a step fails.
pub fn build() -> Result<Kernel> {
    let directory = Cache::open()?.host_kernel(HostKernel::Iommufd);
    let path = build::source().join(CONFIG);
    let more =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Linux {
        name: "the virtual host's kernel with iommufd",
        config: joined(&own_kernel::config()?, &more),
        about: CONFIG,
        directory: directory.clone(),
    }
    .build()?;
    Ok(Kernel {
        image: directory.join("bzImage"),
        modules: None,
    })
}

/// The options of `base` and `more`, where both have one that of `more`.
fn joined(base: &str, more: &str) -> String {
    let decided: HashSet<_> = more.lines().filter_map(option).collect();
    let mut config: String = base
        .lines()
        .filter(|line| option(line).is_none_or(|name| !decided.contains(name)))
        .flat_map(|line| [line, "\n"])
        .collect();
    config.push_str(more);
    config
}

/// The option that a line of a configuration decides.
fn option(line: &str) -> Option<&str> {
    let name = match line.strip_prefix("# ") {
        Some(comment) => comment.strip_suffix(" is not set")?,
        None => line.split_once('=')?.0,
    };
    name.starts_with("CONFIG_").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_again_counts_alone() {
        let base = "# Words\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"c\"\n";
        let more = "# CONFIG_A is not set\nCONFIG_B=y\n";
        assert_eq!(
            joined(base, more),
            "# Words\nCONFIG_C=\"c\"\n# CONFIG_A is not set\nCONFIG_B=y\n"
        );
    }

    #[test]
    fn it_decides_otherwise_what_the_guests_kernel_decides() {
        let more = fs::read_to_string(build::source().join(CONFIG)).unwrap();
        let config = joined(&own_kernel::config().unwrap(), &more);
        let mut options: Vec<_> = config.lines().filter_map(option).collect();
        let all = options.len();
        options.sort_unstable();
        options.dedup();
        assert_eq!(options.len(), all);
        assert!(config.contains("\nCONFIG_IOMMUFD=y\n"));
    }
}
