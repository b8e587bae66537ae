//! Directories that are shared by their paths: for each, a virtiofsd is started before the VM is.
//!
//! A virtiofsd serves one client. Ours is connected before it starts, by a socket that has no name any more when it does: nobody else ever
//! is its client, and however this process ends, its connection ends with it, at which virtiofsd ends as well, in whatever state it is.
//! Besides that it gets SIGKILL ([`process`]).

mod process;
mod sandbox;

use std::os::fd::IntoRawFd as _;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use orlop_vmm::config::{FsBackend, FsConfig, ShareConfig};
use orlop_vmm::socket;
use orlop_vmm::state::StateDirectory;
use orlop_vmm::vm;

use self::process::{Process, Program};
use crate::doctor::programs;

/// The variable that names the program.
pub const VARIABLE: &str = "ORLOP_VIRTIOFSD";

/// The virtiofsds of a VM. They end with this.
pub struct Backends(Vec<Arc<Process>>);

/// Starts those that `shares` needs: with `program`, or else that of the environment, or what is installed. What comes of it is for the VM.
///
/// # Errors
/// When a directory cannot be shared, or there is no virtiofsd.
pub fn serve(
    shares: Vec<ShareConfig>,
    program: Option<PathBuf>,
) -> anyhow::Result<(Vec<FsConfig>, Backends)> {
    let has_directory = |share: &ShareConfig| matches!(share, ShareConfig::Directory { .. });
    let program = if shares.iter().any(has_directory) {
        for share in &shares {
            if let ShareConfig::Directory { path, .. } = share {
                can_be_read(path).with_context(|| format!("cannot share {}", path.display()))?;
            }
        }
        Some(Program::new(find(program)?))
    } else {
        None
    };
    let mut backends = Backends(Vec::new());
    let mut served = Vec::new();
    for share in shares {
        served.push(match (share, &program) {
            (
                ShareConfig::Directory {
                    tag,
                    path,
                    readonly,
                },
                Some(program),
            ) => {
                let state = StateDirectory::of_user();
                let (listener, client) = state
                    .make()
                    .and_then(|()| socket::with_client(state.path()))
                    .with_context(|| {
                        format!("cannot make a socket in {}", state.path().display())
                    })?;
                let process = program.start(&tag, &path::absolute(&path)?, readonly, listener)?;
                backends.0.push(Arc::new(process));
                // The VM's device owns it from here on.
                let backend = FsBackend::Connected(client.into_raw_fd());
                FsConfig { tag, backend }
            }
            (ShareConfig::Served(fs), _) => fs,
            (ShareConfig::Directory { .. }, None) => bail!("there is no virtiofsd"),
        });
    }
    Ok((served, backends))
}

impl Backends {
    /// From now on what they print is in our log. To be called when the VM's threads leave signals alone, for these threads must as well.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn listen(&self) -> std::io::Result<()> {
        self.0.iter().try_for_each(Process::listen)
    }

    /// Others of these, for one who listens.
    pub fn share(&self) -> Self {
        Backends(self.0.clone())
    }

    /// Lets them end, and has the reason of the VM's failure be theirs where it is.
    ///
    /// # Errors
    /// That of the VM.
    pub fn end<T>(self, outcome: Result<T, vm::Error>) -> anyhow::Result<T> {
        match outcome {
            Ok(outcome) => {
                // The VM has closed their connections.
                self.0.iter().for_each(|process| process.wait());
                Ok(outcome)
            }
            Err(error) => {
                let failed = matches!(error, vm::Error::Fs(_));
                let last_words = failed.then(|| self.0.iter().find_map(|p| p.last_words()));
                self.0.iter().for_each(|process| process.kill());
                match last_words.flatten() {
                    Some(words) => Err(anyhow!(words)),
                    None => Err(error.into()),
                }
            }
        }
    }
}

/// The program that a user has named, or that is installed.
fn find(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let by_environment = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
    if let Some(path) = named.or(by_environment.map(PathBuf::from)) {
        anyhow::ensure!(
            programs::is_program(&path),
            "{} is no program: name a virtiofsd with --virtiofsd or {VARIABLE}",
            path.display()
        );
        return Ok(path);
    }
    programs::virtiofsd().ok_or_else(|| {
        anyhow!(
            "virtiofsd, which serves shared directories, is not installed; {}; or name one with --virtiofsd or {VARIABLE}",
            programs::VIRTIOFSD_ADVICE
        )
    })
}

/// Whether it is a directory that this user may look into.
fn can_be_read(path: &Path) -> std::io::Result<()> {
    std::fs::read_dir(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(share: &str, program: Option<&str>) -> String {
        let shares = vec![share.parse().unwrap()];
        let refused = serve(shares, program.map(PathBuf::from)).err().unwrap();
        format!("{refused:#}")
    }

    #[test]
    fn what_cannot_be_shared_is_said_before_anything_starts() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let absent = refused("tag=t,path=/nonexistent", None);
        assert!(absent.contains("cannot share /nonexistent"), "{absent}");
        assert!(absent.contains("No such file"), "{absent}");
        let file = refused(&format!("tag=t,path={}", file.display()), None);
        assert!(file.contains("Not a directory"), "{file}");
        let share = format!("tag=t,path={}", directory.path().display());
        let program = refused(&share, Some("/nonexistent/virtiofsd"));
        assert!(program.contains("--virtiofsd"), "{program}");
    }

    #[test]
    fn who_is_served_already_needs_no_program() {
        let shares = vec!["tag=t,socket=/s".parse().unwrap()];
        let (served, backends) = serve(shares, Some("/nonexistent".into())).unwrap();
        assert_eq!(served, ["tag=t,socket=/s".parse().unwrap()]);
        assert!(backends.0.is_empty());
    }
}
