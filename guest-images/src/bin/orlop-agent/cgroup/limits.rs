//! Other limits for a control group whose container runs, by the same code that sets those that it begins with.

use std::io;
use std::path::Path;

use libcgroups::common::{CgroupManager as _, ControllerOpt};
use libcgroups::v2::manager::Manager;
use oci_spec::runtime::LinuxResources;

use super::{Cgroup, ROOT};

impl Cgroup {
    /// Sets the limits that `resources` names, and leaves the others.
    ///
    /// # Errors
    /// When the kernel refuses one, or one would have processes killed at once and the caller wants to be told instead.
    pub fn set_limits(&self, resources: &LinuxResources) -> io::Result<()> {
        self.check_memory(resources)?;
        let below = self.spec_path();
        let manager = Manager::new(Path::new(ROOT).into(), below).map_err(io::Error::other)?;
        let change = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager.apply(&change).map_err(io::Error::other)
    }

    /// The kernel takes any limit, and kills what is beyond it.
    fn check_memory(&self, resources: &LinuxResources) -> io::Result<()> {
        let Some(memory) = resources.memory() else {
            return Ok(());
        };
        let limit = memory.limit().and_then(|limit| u64::try_from(limit).ok());
        match limit {
            Some(limit) if memory.check_before_update() == Some(true) => {
                let used = self.stats().memory_current;
                if used > limit {
                    return Err(io::Error::other(format!(
                        "it uses {used} bytes of memory, which is more than {limit}"
                    )));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_limit_below_what_is_in_use_is_refused_if_the_caller_asks_for_that() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("memory.current"), "5000\n").unwrap();
        let group = Cgroup(directory.path().to_owned());
        let resources = |limit: i64, check: bool| -> LinuxResources {
            let memory = serde_json::json!({"limit": limit, "checkBeforeUpdate": check});
            serde_json::from_value(serde_json::json!({"memory": memory})).unwrap()
        };
        assert!(group.check_memory(&resources(5000, true)).is_ok());
        assert!(group.check_memory(&resources(-1, true)).is_ok());
        assert!(group.check_memory(&resources(4096, false)).is_ok());
        let error = group.check_memory(&resources(4096, true)).unwrap_err();
        assert!(error.to_string().contains("5000"), "{error}");
    }
}
