//! What the annotations of a pod's sandbox say: what its user asks for (`orlop.dev/…`), and what containerd's CRI plugin tells of it.
//!
//! containerd hands on those of the user's that its configuration names: `pod_annotations = ["orlop.dev/*"]`. One that is not known is
//! refused, for whoever wrote it means something by it.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::memory_size::MemorySize;
use crate::sandbox::size::{Asked, Limits};

const PREFIX: &str = "orlop.dev/";
const VCPUS: &str = "orlop.dev/vcpus";
const MEMORY: &str = "orlop.dev/memory";
const KERNEL: &str = "orlop.dev/kernel";
const CMDLINE: &str = "orlop.dev/cmdline";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The longest addition to the kernel's command line, in bytes. Linux takes 2048 in all.
const CMDLINE_LIMIT: usize = 1024;

/// What Kubernetes calls a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Its VM's size.
    pub size: Asked,
    /// A kernel other than the configuration's.
    pub kernel: Option<PathBuf>,
    /// What is added to the kernel's command line.
    pub cmdline: Option<String>,
    /// What it is called, if it is one of Kubernetes.
    pub name: Option<PodName>,
}

/// An annotation that not every node allows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Restricted {
    /// `orlop.dev/kernel`.
    Kernel,
    /// `orlop.dev/cmdline`.
    Cmdline,
}

/// Why annotations are refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnnotationError {
    /// It is none of Orlop's.
    #[error("annotation {0} is not known; Orlop knows {VCPUS}, {MEMORY}, {KERNEL} and {CMDLINE}")]
    Unknown(String),
    /// It does not mean anything.
    #[error("annotation {name} is {value:?}; it must be {must}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        must: &'static str,
    },
    /// The node's configuration does not allow it.
    #[error(
        "annotation {name} is {value:?}, which is not allowed on this node; `allow_annotations = [{key:?}]` in the configuration of Orlop allows it"
    )]
    Forbidden {
        /// Its name.
        name: &'static str,
        /// What it is.
        value: String,
        /// What the configuration calls it.
        key: &'static str,
    },
}

impl Annotations {
    /// Reads those of a sandbox, on a node that allows `allowed`.
    ///
    /// # Errors
    /// When one is unknown, means nothing, or is not allowed.
    pub fn of(
        annotations: &HashMap<String, String>,
        allowed: &[Restricted],
    ) -> Result<Self, AnnotationError> {
        let known = [VCPUS, MEMORY, KERNEL, CMDLINE];
        let mut unknown: Vec<_> = annotations
            .keys()
            .filter(|name| is_ours(name) && !known.contains(&name.as_str()))
            .collect();
        unknown.sort();
        if let Some(name) = unknown.first() {
            return Err(AnnotationError::Unknown(crate::codes::one_line(name)));
        }
        let values = Values(annotations);
        Ok(Self {
            size: Asked {
                vcpus: values.parsed(VCPUS, "a whole number of vCPUs, such as 2")?,
                memory: values
                    .parsed::<MemorySize>(MEMORY, "a size in whole MiB, such as 512Mi or 2Gi")?,
                pod: values.limits()?,
            },
            kernel: values.kernel(allowed)?,
            cmdline: values.cmdline(allowed)?,
            name: values.name(),
        })
    }
}

/// Whether an annotation is one that Orlop is meant by.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The annotations in which containerd says what a pod is called.
pub fn of_name(namespace: &str, name: &str) -> [(String, String); 2] {
    [(SANDBOX_NAMESPACE, namespace), (SANDBOX_NAME, name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// And those in which it says what a pod's containers may have together: CPU time in microseconds of each period, shares, bytes.
pub fn of_limits(period: i64, quota: i64, shares: i64, memory: i64) -> [(String, String); 4] {
    [
        (CPU_PERIOD, period),
        (CPU_QUOTA, quota),
        (CPU_SHARES, shares),
        (SANDBOX_MEMORY, memory),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_string()))
}

struct Values<'a>(&'a HashMap<String, String>);

impl Values<'_> {
    fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        must: &'static str,
    ) -> Result<Option<T>, AnnotationError> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        // Rust's numbers may begin with a sign.
        let parsed = value.parse().ok().filter(|_| !value.starts_with('+'));
        parsed.map(Some).ok_or_else(|| refused(name, value, must))
    }

    /// What containerd says of the pod's containers; 0 is what it says where the kubelet says nothing.
    fn limits(&self) -> Result<Limits, AnnotationError> {
        let must = "a whole number, as containerd writes it";
        let quota: Option<i64> = self.parsed(CPU_QUOTA, must)?;
        let period: Option<u64> = self.parsed(CPU_PERIOD, must)?;
        let shares: Option<i64> = self.parsed(CPU_SHARES, must)?;
        let memory: Option<i64> = self.parsed(SANDBOX_MEMORY, must)?;
        let period = period.filter(|period| *period > 0).unwrap_or(100_000);
        Ok(Limits {
            cpu: quota.and_then(|quota| Limits::cpu_of(quota, period)),
            shares: shares.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            memory: memory.and_then(Limits::memory_of),
        })
    }

    fn name(&self) -> Option<PodName> {
        let text = |name| Some(crate::codes::one_line(self.0.get(name)?));
        Some(PodName {
            namespace: text(SANDBOX_NAMESPACE)?,
            name: text(SANDBOX_NAME)?,
        })
    }

    fn kernel(&self, allowed: &[Restricted]) -> Result<Option<PathBuf>, AnnotationError> {
        let Some(value) = self.0.get(KERNEL) else {
            return Ok(None);
        };
        if !allowed.contains(&Restricted::Kernel) {
            return Err(forbidden(KERNEL, value, "kernel"));
        }
        let path = PathBuf::from(value);
        if !path.is_absolute() || value.chars().any(char::is_control) {
            return Err(refused(
                KERNEL,
                value,
                "the absolute path of a kernel on the node",
            ));
        }
        Ok(Some(path))
    }

    fn cmdline(&self, allowed: &[Restricted]) -> Result<Option<String>, AnnotationError> {
        let Some(value) = self.0.get(CMDLINE) else {
            return Ok(None);
        };
        if !allowed.contains(&Restricted::Cmdline) {
            return Err(forbidden(CMDLINE, value, "cmdline"));
        }
        let printable = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || value.len() > CMDLINE_LIMIT {
            let must = "at most 1024 printable characters of ASCII";
            return Err(refused(CMDLINE, value, must));
        }
        Ok(Some(value.trim().to_owned()).filter(|text| !text.is_empty()))
    }
}

/// A value as it is shown: what a user writes may be long.
fn shown(value: &str) -> String {
    value.chars().take(64).collect()
}

fn refused(name: &'static str, value: &str, must: &'static str) -> AnnotationError {
    AnnotationError::Value {
        name,
        value: shown(value),
        must,
    }
}

fn forbidden(name: &'static str, value: &str, key: &'static str) -> AnnotationError {
    AnnotationError::Forbidden {
        name,
        value: shown(value),
        key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)], allowed: &[Restricted]) -> Result<Annotations, AnnotationError> {
        let pairs = pairs.iter().map(|&(key, value)| (key.into(), value.into()));
        Annotations::of(&pairs.collect(), allowed)
    }

    #[test]
    fn a_pod_is_asked_for_by_its_user_and_by_containerd() {
        let all = [Restricted::Kernel, Restricted::Cmdline];
        let annotations = of(
            &[
                (VCPUS, "2"),
                (MEMORY, "1Gi"),
                (KERNEL, "/boot/vmlinux"),
                (CMDLINE, " nokaslr "),
                (CPU_QUOTA, "150000"),
                (CPU_PERIOD, "100000"),
                (CPU_SHARES, "512"),
                (SANDBOX_MEMORY, "134217728"),
                ("example.com/other", "x"),
                (SANDBOX_NAME, "web-0"),
                (SANDBOX_NAMESPACE, "prod"),
            ],
            &all,
        )
        .unwrap();
        assert_eq!(annotations.size.vcpus, Some(2));
        assert_eq!(annotations.size.memory, Some(MemorySize::of_mib(1024)));
        let pod = annotations.size.pod;
        assert_eq!((pod.cpu, pod.shares), (Some(1500), 512));
        assert_eq!(pod.memory, Some(MemorySize::of_mib(128)));
        assert_eq!(annotations.kernel, Some("/boot/vmlinux".into()));
        assert_eq!(annotations.cmdline.as_deref(), Some("nokaslr"));
        let name = annotations.name.unwrap();
        assert_eq!((&*name.namespace, &*name.name), ("prod", "web-0"));
        // What the kubelet does not say containerd writes as 0.
        let nothing = [
            (CPU_QUOTA, "0"),
            (CPU_PERIOD, "0"),
            (CPU_SHARES, "0"),
            (SANDBOX_MEMORY, "0"),
        ];
        assert_eq!(of(&nothing, &[]), Ok(Annotations::default()));
    }

    #[test]
    fn what_means_nothing_is_refused_with_its_name_its_value_and_what_is_right() {
        for (name, value, words) in [
            (
                "orlop.dev/vcpu",
                "2",
                ["orlop.dev/vcpu is not known", "orlop.dev/vcpus"],
            ),
            (
                VCPUS,
                "two",
                ["orlop.dev/vcpus is \"two\"", "a whole number of vCPUs"],
            ),
            (
                VCPUS,
                "-1",
                ["orlop.dev/vcpus is \"-1\"", "a whole number of vCPUs"],
            ),
            (
                VCPUS,
                "+1",
                ["orlop.dev/vcpus is \"+1\"", "a whole number of vCPUs"],
            ),
            (
                VCPUS,
                "1.5",
                ["orlop.dev/vcpus is \"1.5\"", "a whole number of vCPUs"],
            ),
            (
                VCPUS,
                "4294967296",
                ["\"4294967296\"", "a whole number of vCPUs"],
            ),
            (
                MEMORY,
                "1 Gi\nx",
                ["orlop.dev/memory is \"1 Gi\\nx\"", "512Mi or 2Gi"],
            ),
            (MEMORY, "", ["orlop.dev/memory is \"\"", "512Mi or 2Gi"]),
            (
                SANDBOX_MEMORY,
                "much",
                ["sandbox-memory is \"much\"", "a whole number"],
            ),
            (
                CPU_PERIOD,
                "-1",
                ["sandbox-cpu-period is \"-1\"", "a whole number"],
            ),
            (
                KERNEL,
                "/k",
                [
                    "orlop.dev/kernel is \"/k\"",
                    "allow_annotations = [\"kernel\"]",
                ],
            ),
            (
                CMDLINE,
                "x",
                [
                    "orlop.dev/cmdline is \"x\"",
                    "allow_annotations = [\"cmdline\"]",
                ],
            ),
        ] {
            let error = of(&[(name, value)], &[]).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "no {word:?} in: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
        let long = "x".repeat(CMDLINE_LIMIT + 1);
        for (name, value) in [(KERNEL, "vmlinux"), (CMDLINE, "a\nb"), (CMDLINE, &long)] {
            let all = [Restricted::Kernel, Restricted::Cmdline];
            let error = of(&[(name, value)], &all).unwrap_err().to_string();
            assert!(error.contains("it must be"), "{error}");
            assert!(error.len() < 300, "{error}");
        }
    }
}
