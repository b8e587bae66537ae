//! The command line, as containerd gives it: Go's flags (`-id X`, `-id=X`, `--id X`), then one action.

use std::io::Write;
use std::path::PathBuf;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::features::features;

/// The runtime's name, as a client asks containerd for it.
pub const RUNTIME: &str = "io.containerd.orlop.v2";

/// What the program is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find or make the process that serves a pod.
    Start,
    /// Be that process. Not containerd's: `start` says it.
    Serve,
    /// Clean up after a pod.
    Delete,
    /// Print the version.
    Version,
    /// Print what containerd 2 asks of a runtime, as protobuf.
    Info,
}

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cli {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id; in `serve`, the sandbox's.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The bundle, where containerd says it (`delete`); otherwise the bundle is the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether to log more.
    pub debug: bool,
}

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CliError {
    /// A flag that the program does not have.
    #[error("unknown flag {0}")]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("flag {0} needs a value")]
    NoValue(String),
    /// No action, or one that the program does not have.
    #[error("the action is one of start, delete; got {0:?}")]
    Action(String),
    /// An action without the flag that it needs.
    #[error("flag -{0} is needed")]
    Missing(&'static str),
    /// A name that cannot be a directory's.
    #[error("-{flag} {value:?} is not a name of letters, digits and _.-")]
    Name {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        value: String,
    },
}

impl Cli {
    /// Parses the arguments behind the program's name.
    ///
    /// # Errors
    /// When a flag is unknown or lacks its value, or the action lacks a flag.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, CliError> {
        let mut cli = Cli {
            action: Action::Version,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        let mut action = None;
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                action = Some(argument);
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => cli.debug = inline.as_deref() != Some("false"),
                "v" | "version" => {
                    return Ok(Cli {
                        action: Action::Version,
                        ..cli
                    });
                }
                "info" => {
                    return Ok(Cli {
                        action: Action::Info,
                        ..cli
                    });
                }
                "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" => {
                    let value = inline
                        .or_else(|| arguments.next())
                        .ok_or_else(|| CliError::NoValue(argument.clone()))?;
                    match name {
                        "namespace" => cli.namespace = value,
                        "id" => cli.id = value,
                        "address" => cli.address = value,
                        "bundle" if !value.is_empty() => cli.bundle = Some(PathBuf::from(value)),
                        // Events go over TTRPC_ADDRESS, so the binary that would publish them is not needed.
                        _ => {}
                    }
                }
                _ => return Err(CliError::UnknownFlag(argument)),
            }
        }
        cli.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("serve") => Action::Serve,
            Some("delete") => Action::Delete,
            other => return Err(CliError::Action(other.unwrap_or_default().to_owned())),
        };
        cli.check()?;
        Ok(cli)
    }

    fn check(&self) -> Result<(), CliError> {
        for (flag, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(CliError::Missing(flag));
            }
            if !is_name(value) {
                return Err(CliError::Name {
                    flag,
                    value: value.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Whether `value` is an id as containerd and the agent know them: 1 to 76 of `[A-Za-z0-9_.-]`, the first alphanumeric.
/// Such a name is also safe as a directory's.
pub fn is_name(value: &str) -> bool {
    value.len() <= 76
        && value.starts_with(|first: char| first.is_ascii_alphanumeric())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Prints what `-info` asks for.
///
/// # Errors
/// When it cannot be written.
pub fn print_info() -> anyhow::Result<()> {
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
        .into(),
        features: Some(features()).into(),
        ..Default::default()
    };
    std::io::stdout().write_all(&info.write_to_bytes()?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, CliError> {
        Cli::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn takes_containerds_flags_in_each_of_gos_spellings() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id=a1 --bundle /b -debug delete";
        let cli = parse(line).unwrap();
        assert_eq!(cli.action, Action::Delete);
        assert_eq!((cli.namespace.as_str(), cli.id.as_str()), ("k8s.io", "a1"));
        assert_eq!(cli.address, "/run/c.sock");
        assert_eq!(cli.bundle, Some(PathBuf::from("/b")));
        assert!(cli.debug);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse("-x start"), Err(CliError::UnknownFlag("-x".into())));
        assert_eq!(
            parse("-namespace a -id"),
            Err(CliError::NoValue("-id".into()))
        );
        assert_eq!(
            parse("-namespace a -id b run"),
            Err(CliError::Action("run".into()))
        );
        assert_eq!(parse("-namespace a start"), Err(CliError::Missing("id")));
    }

    #[test]
    fn a_name_that_leaves_its_directory_is_refused() {
        for id in ["..", "../x", "a/b", ".hidden", "-x", "", "é"] {
            assert!(!is_name(id), "{id:?}");
        }
        assert!(is_name("a"));
        assert!(is_name(&"0".repeat(76)));
        assert!(!is_name(&"0".repeat(77)));
        let arguments = ["-namespace", "n", "-id", "../x", "start"];
        let parsed = Cli::parse(arguments.into_iter().map(str::to_owned));
        assert!(matches!(parsed, Err(CliError::Name { flag: "id", .. })));
    }
}
