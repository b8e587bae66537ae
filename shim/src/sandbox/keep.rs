//! What is kept of a VM that failed: the end of its console and of the VMM's own words, for whoever looks for the reason later.
//!
//! A pod's directory goes with the pod, mostly before anybody has looked. So a copy is put among the machine's logs, with the name of the
//! pod, readable by root alone, for a guest's console may say anything. There are never more than [`KEPT`] of them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::state::StateDir;
use crate::spec::PodName;

/// How many VMs' last words are kept.
const KEPT: usize = 32;
/// How much of each file, in bytes.
const END: u64 = 64 << 10;
/// What the kept files' names end with.
const SUFFIX: &str = "console.log";

/// Keeps what the VM of a pod has said.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    /// The pod's directory.
    pub directory: StateDir,
    /// The directory of the machine's logs.
    pub logs: PathBuf,
    /// What the file is called, without what all names end with.
    pub name: String,
}

/// Where it is kept, if it is. Printed, it is what an error message goes on with.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept(Option<PathBuf>);

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => write!(f, "; the guest's console is kept in {}", path.display()),
            None => Ok(()),
        }
    }
}

/// The name of the file for a pod: Kubernetes' name for it, and enough of its id to tell it from an earlier one.
pub(super) fn file_name(pod: Option<&PodName>, id: &str) -> String {
    let Some(pod) = pod else {
        return id.to_owned();
    };
    let safe = |text: &str| -> String {
        let safe = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
        text.chars().filter(safe).take(64).collect()
    };
    let id: String = id.chars().take(12).collect();
    format!("{}_{}_{id}", safe(&pod.namespace), safe(&pod.name))
}

impl Keeper {
    /// Keeps it, unless the guest has said nothing, or it cannot be kept.
    pub fn keep(&self) -> Kept {
        let console = end_of(&self.directory.file("console.log")).unwrap_or_default();
        if console.is_empty() {
            return Kept(None);
        }
        let vmm = end_of(&self.directory.file("vmm.log")).unwrap_or_default();
        match write(&self.logs, &self.name, &console, &vmm) {
            Ok(path) => Kept(Some(path)),
            Err(error) => {
                let logs = self.logs.display();
                log::warn!("the console cannot be kept in {logs}: {error}");
                Kept(None)
            }
        }
    }
}

fn write(logs: &Path, name: &str, console: &[u8], vmm: &[u8]) -> io::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(logs)?;
    make_room(logs)?;
    let path = logs.join(format!("{name}.{SUFFIX}"));
    // An earlier one, or what somebody else has put there.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(console)?;
    if !vmm.is_empty() {
        file.write_all(b"\n--- the VMM ---\n")?;
        file.write_all(vmm)?;
    }
    Ok(path)
}

/// The last bytes of a file, from the beginning of a line where there is one.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(END);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(END).read_to_end(&mut bytes)?;
    if skipped > 0
        && let Some(first) = bytes.iter().position(|byte| *byte == b'\n')
    {
        bytes.drain(..=first);
    }
    Ok(bytes)
}

/// Removes the oldest, so that one more may come.
fn make_room(logs: &Path) -> io::Result<()> {
    let mut kept: Vec<(SystemTime, PathBuf)> = fs::read_dir(logs)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(SUFFIX))
        .filter_map(|path| Some((path.symlink_metadata().ok()?.modified().ok()?, path)))
        .collect();
    kept.sort();
    let too_many = (kept.len() + 1).saturating_sub(KEPT);
    for (_, path) in kept.into_iter().take(too_many) {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_file_is_called_as_the_pod_is() {
        let pod = PodName {
            namespace: "prod".into(),
            name: "../web-0\n".into(),
        };
        let id = "0123456789abcdef";
        assert_eq!(file_name(Some(&pod), id), "prod_web-0_0123456789ab");
        assert_eq!(file_name(None, id), id);
        let kept = Kept(Some("/var/log/x".into())).to_string();
        assert_eq!(kept, "; the guest's console is kept in /var/log/x");
        assert_eq!(Kept(None).to_string(), "");
    }

    #[test]
    fn the_end_is_kept_and_the_oldest_make_room() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::of(root.path(), "k8s.io", "s1");
        directory.create().unwrap();
        let logs = root.path().join("logs");
        let keep = |name: &str| {
            let keeper = Keeper {
                directory: directory.clone(),
                logs: logs.clone(),
                name: name.to_owned(),
            };
            keeper.keep().0
        };
        assert_eq!(keep("nothing"), None);
        fs::write(directory.file("console.log"), "").unwrap();
        assert_eq!(keep("nothing"), None);
        assert!(!logs.exists());

        let mut console = "old line\n".repeat(20_000);
        console.push_str("Kernel panic\n");
        fs::write(directory.file("console.log"), console).unwrap();
        fs::write(directory.file("vmm.log"), "orlop: it ended\n").unwrap();
        let path = keep("stories_web").unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert!(kept.starts_with("old line\n"), "it begins within a line");
        assert!(kept.contains("Kernel panic\n\n--- the VMM ---\norlop: it ended\n"));
        assert!(kept.len() < 70_000);
        assert_eq!(keep("stories_web"), Some(path));

        for number in 0..KEPT + 5 {
            keep(&format!("pod-{number}")).unwrap();
        }
        fs::write(logs.join("notes"), "precious").unwrap();
        assert_eq!(fs::read_dir(&logs).unwrap().count(), KEPT + 1);
    }
}
