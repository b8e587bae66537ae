//! The files in `/etc` that a pod's containers share, where containerd leaves them to whoever makes the pod's sandbox: as it makes them itself
//! otherwise, of the pod's configuration and of the machine's own files.

use std::fs;
use std::io;
use std::path::Path;

use super::StateDir;
use crate::spec::{PodConfig, PodFile};

/// Writes them into the pod's directory. A container has those of them that its own spec does not mention.
///
/// # Errors
/// What the file system says.
pub fn write(directory: &StateDir, config: &PodConfig) -> io::Result<Vec<PodFile>> {
    let hostname = match config.hostname() {
        Some(name) => name.to_owned(),
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    let resolv_conf = match config.resolv_conf() {
        Some(text) => text,
        None => of_machine("/etc/resolv.conf")?,
    };
    [
        ("/etc/hostname", "hostname", format!("{hostname}\n")),
        ("/etc/hosts", "hosts", of_machine("/etc/hosts")?),
        ("/etc/resolv.conf", "resolv.conf", resolv_conf),
    ]
    .into_iter()
    .map(|(destination, name, text)| {
        let source = directory.file(name);
        fs::write(&source, text)?;
        Ok(PodFile {
            destination,
            source,
        })
    })
    .collect()
}

/// The machine's own file; nothing, where it has none.
fn of_machine(path: impl AsRef<Path>) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_the_machine_s_where_it_says_nothing() {
        let run = tempfile::tempdir().unwrap();
        let directory = StateDir::of(run.path(), "k8s.io", "pod");
        directory.create().unwrap();
        let files = write(&directory, &PodConfig::default()).unwrap();
        let destinations: Vec<_> = files.iter().map(|file| file.destination).collect();
        assert_eq!(
            destinations,
            ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
        );
        let read = |file: &PodFile| fs::read_to_string(&file.source).unwrap();
        assert!(!read(&files[0]).trim().is_empty());
        assert_eq!(read(&files[1]), of_machine("/etc/hosts").unwrap());
        assert_eq!(of_machine("/nothing/there").unwrap(), "");
    }
}
