//! `--fs`: which directory the guest shares, by which name, and who serves it.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use super::parse::{Fields, ParseError};
use crate::devices::virtio::fs::TAG_LEN;

/// A shared directory, as the VM has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// The name under which the guest mounts it.
    pub tag: FsTag,
    /// Who serves it.
    pub backend: FsBackend,
}

/// Where a shared directory's vhost-user backend (virtiofsd) is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsBackend {
    /// It listens on this socket.
    Socket(PathBuf),
    /// It is connected to this descriptor of the process, which the device takes: nobody else uses or closes it.
    Connected(RawFd),
}

/// The name of a shared directory: 1 to 36 bytes, none of them zero (virtio 1.2, 5.11.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FsTag(String);

/// A shared directory, as a user writes it: `tag=T,socket=S` or `tag=T,path=DIR[,readonly]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareConfig {
    /// One that is served already.
    Served(FsConfig),
    /// One for which a virtiofsd is to be started.
    Directory {
        /// The name under which the guest mounts it.
        tag: FsTag,
        /// The directory.
        path: PathBuf,
        /// Whether the guest may not write there.
        readonly: bool,
    },
}

impl ShareConfig {
    /// The name under which the guest mounts it.
    pub fn tag(&self) -> &FsTag {
        match self {
            ShareConfig::Served(FsConfig { tag, .. }) | ShareConfig::Directory { tag, .. } => tag,
        }
    }
}

impl FsTag {
    /// The longest tag.
    pub const MAX: usize = TAG_LEN;

    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FsTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for FsTag {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() || text.len() > Self::MAX || text.contains('\0') {
            return Err(ParseError::new(format!(
                "tag={text}: a tag has 1 to {} bytes, none of them zero",
                Self::MAX
            )));
        }
        Ok(FsTag(text.into()))
    }
}

impl FromStr for FsConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut fields = Fields::of(text, "tag=TAG,socket=PATH")?;
        let fs = FsConfig {
            tag: fields.required("tag")?.parse()?,
            backend: FsBackend::Socket(fields.path("socket")?),
        };
        fields.end()?;
        Ok(fs)
    }
}

impl FromStr for ShareConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let form = "tag=TAG,path=DIRECTORY[,readonly] or tag=TAG,socket=PATH";
        let mut fields = Fields::of(text, form)?;
        let tag = fields.required("tag")?.parse()?;
        let share = match (fields.take("path"), fields.take("socket")) {
            (Some(_), Some(_)) => {
                return Err(ParseError::new(
                    "a directory is served by a virtiofsd of its own, or by the one behind a socket: write path= or socket=, not both",
                ));
            }
            (Some(path), None) if !path.is_empty() => ShareConfig::Directory {
                tag,
                path: path.into(),
                readonly: fields.flag("readonly"),
            },
            (None, Some(socket)) if !socket.is_empty() => ShareConfig::Served(FsConfig {
                tag,
                backend: FsBackend::Socket(socket.into()),
            }),
            _ => return Err(fields.missing("the directory")),
        };
        if matches!(share, ShareConfig::Served(_)) && fields.flag("readonly") {
            return Err(ParseError::new(
                "whether the guest may write is up to the virtiofsd behind the socket: start that with --readonly",
            ));
        }
        fields.end()?;
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_served_by_somebody_or_by_its_own() {
        let share = |text: &str| text.parse::<ShareConfig>().unwrap();
        let served = share("tag=src,socket=/s");
        assert_eq!(
            served,
            ShareConfig::Served("socket=/s,tag=src".parse().unwrap())
        );
        assert_eq!(served.tag().as_str(), "src");
        for (text, is_readonly) in [
            ("tag=src,path=/srv", false),
            ("path=/srv,readonly,tag=src", true),
        ] {
            assert_eq!(
                share(text),
                ShareConfig::Directory {
                    tag: "src".parse().unwrap(),
                    path: "/srv".into(),
                    readonly: is_readonly
                }
            );
        }
    }

    #[test]
    fn what_is_no_share_says_what_would_be_one() {
        let long = format!("tag={},path=/srv", "x".repeat(37));
        for (text, hint) in [
            ("", "tag is missing"),
            ("tag=,path=/srv", "tag is missing"),
            (&long, "1 to 36 bytes"),
            ("tag=t", "the directory is missing"),
            ("tag=t,path=", "the directory is missing"),
            ("tag=t,socket=", "the directory is missing"),
            ("tag=t,path=/a,socket=/s", "not both"),
            ("tag=t,socket=/s,readonly", "--readonly"),
            ("tag=t,path=/a,ro", "means nothing here"),
            ("tag=t,path=/a,readonly=on", "means nothing here"),
        ] {
            let error = text.parse::<ShareConfig>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!("tag=t,path=/a".parse::<FsConfig>().is_err());
        assert!("x".repeat(36).parse::<FsTag>().is_ok());
        assert!("a\0b".parse::<FsTag>().is_err());
    }
}
