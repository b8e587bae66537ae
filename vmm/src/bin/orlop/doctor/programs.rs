//! What Orlop is made of: containerd, its shim, and the files that the shim's configuration names.

use std::env;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::Finding;
use crate::guest_files::{GuestFiles, of_release};

const SHIM: &str = "containerd-shim-orlop-v2";

/// The shim's configuration, as far as it names files. The shim itself is stricter: it refuses unknown keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(flatten)]
    guest: GuestFiles,
    virtiofsd: Option<PathBuf>,
}

/// Looks for programs and files.
pub fn check() -> Vec<Finding> {
    let mut findings = vec![containerd(), shim()];
    let config = match read_config() {
        Ok(config) => config,
        Err(finding) => {
            findings.push(finding);
            return findings;
        }
    };
    findings.push(file("kernel", &config.guest.kernel()));
    findings.push(match config.guest.image() {
        Some(image) => file("image", &image),
        None => file("initramfs", &config.guest.initramfs()),
    });
    findings.push(check_virtiofsd(config.virtiofsd));
    findings
}

fn containerd() -> Finding {
    let check = "containerd";
    match Command::new("containerd").arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::ok(check, text.lines().next().unwrap_or_default())
        }
        Ok(output) => Finding::missing(
            check,
            format!("containerd --version ends with {}", output.status),
            "install it again: apt install containerd",
        ),
        Err(error) => Finding::missing(
            check,
            format!("containerd cannot be run: {error}"),
            "install it: apt install containerd (`orlop run` works without)",
        ),
    }
}

fn shim() -> Finding {
    let beside = env::current_exe()
        .ok()
        .and_then(|orlop| Some(orlop.parent()?.join(SHIM)));
    match in_path(SHIM) {
        Some(path) => Finding::ok("shim", path.display().to_string()),
        None => {
            let advice = match beside.filter(|path| is_program(path)) {
                Some(path) => format!(
                    "link {} into a directory of containerd's PATH",
                    path.display()
                ),
                None => "build it and put it into a directory of containerd's PATH".to_owned(),
            };
            Finding::missing("shim", format!("{SHIM} is not in PATH"), advice)
        }
    }
}

fn read_config() -> Result<Config, Finding> {
    let check = "config";
    let named = env::var_os("ORLOP_CONFIG").filter(|name| !name.is_empty());
    let path = named
        .clone()
        .map_or_else(|| PathBuf::from("/etc/orlop/config.toml"), PathBuf::from);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Config::default());
        }
        Err(error) => {
            return Err(Finding::missing(
                check,
                format!("{} cannot be read: {error}", path.display()),
                "correct ORLOP_CONFIG or the file's permissions",
            ));
        }
    };
    toml::from_str(&text).map_err(|error| {
        Finding::missing(
            check,
            format!("{} is malformed: {}", path.display(), error.message()),
            "correct it",
        )
    })
}

fn file(check: &'static str, path: &Path) -> Finding {
    match std::fs::File::open(path) {
        Ok(_) => Finding::ok(check, path.display().to_string()),
        Err(error) => Finding::missing(
            check,
            format!("{}: {error}", path.display()),
            format!(
                "make it with orlop-image, or name another {check} in /etc/orlop/config.toml (`orlop run` takes its own)"
            ),
        ),
    }
}

/// How to get virtiofsd.
pub const VIRTIOFSD_ADVICE: &str =
    "install it: cargo install virtiofsd, or apt install virtiofsd where there is such a package";

/// The virtiofsd that is installed, if one is.
pub fn virtiofsd() -> Option<PathBuf> {
    of_release("bin/virtiofsd")
        .into_iter()
        .chain([PathBuf::from("/usr/libexec/virtiofsd")])
        .find(|path| is_program(path))
        .or_else(|| in_path("virtiofsd"))
}

fn check_virtiofsd(configured: Option<PathBuf>) -> Finding {
    let check = "virtiofsd";
    let found = match &configured {
        Some(path) if path.components().count() > 1 => Some(path.clone()),
        Some(name) => in_path(&name.to_string_lossy()),
        None => virtiofsd(),
    };
    match found {
        Some(path) if is_program(&path) => Finding::ok(check, path.display().to_string()),
        Some(path) => Finding::missing(
            check,
            format!("{} is not a program", path.display()),
            "correct the configuration's virtiofsd",
        ),
        None => Finding::missing(
            check,
            "is not installed (pods and `orlop run --fs path=` need it)",
            VIRTIOFSD_ADVICE,
        ),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| is_program(path))
}

/// Whether it is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn programs_are_found_in_path() {
        assert!(in_path("sh").is_some());
        assert!(in_path("no-such-program-anywhere").is_none());
        assert!(!is_program(Path::new("/etc/passwd")));
    }

    #[test]
    fn the_configuration_may_have_more_than_is_looked_at() {
        let config: Config = toml::from_str("kernel = \"/k\"\nvcpus = 3\n").unwrap();
        assert_eq!(config.guest.kernel(), Path::new("/k"));
        assert_eq!(config.guest.initramfs(), GuestFiles::default().initramfs());
    }

    #[test]
    fn a_file_that_is_absent_is_missing() {
        assert_eq!(file("kernel", Path::new("/nope")).verdict, Verdict::Missing);
        assert_eq!(
            file("kernel", Path::new("/etc/passwd")).verdict,
            Verdict::Ok
        );
    }
}
