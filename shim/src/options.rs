//! What containerd's configuration says of the runtime handler that a pod came by: a configuration of its own.
//!
//! containerd writes the handler's `options` to the standard input of `start`: as a protobuf `Any`, or since 2.3 as one of the extensions of its
//! `BootstrapParams`, in which that `Any`'s two fields have the container's id and namespace. For a runtime that it does not know they are
//! a `runtimeoptions.v1.Options`: the path of a file (`ConfigPath`), or since containerd 1.7 the text itself. `start` leaves the text in the
//! bundle, where the shim and `delete` find it: what a pod was made with is what it is cleaned up with.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use prost::Message;

use crate::codes::one_line;

/// The file in a bundle that holds the handler's configuration.
pub const FILE: &str = "orlop.toml";

/// The end of the type's name; earlier releases have another package.
const TYPE: &str = "runtimeoptions.v1.Options";
/// More than a configuration has, in bytes.
const LIMIT: u64 = 1 << 20;

/// An `Any`, or `BootstrapParams`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(message, repeated, tag = "8")]
    extensions: Vec<Extension>,
}

#[derive(Clone, PartialEq, Message)]
struct Extension {
    #[prost(message, tag = "1")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// Where a handler's configuration is.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// In this file.
    File(PathBuf),
    /// Here.
    Text(String),
}

/// Why a handler's options are refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// They cannot be read.
    #[error("cannot read the runtime handler's options: {0}")]
    Read(std::io::Error),
    /// They are not what they should be.
    #[error("the runtime handler's options are malformed: {0}")]
    Malformed(String),
    /// The path means something else in each process.
    #[error("the runtime handler's ConfigPath is {0:?}; it must be an absolute path")]
    Relative(String),
}

/// Reads the options that containerd has written to `input`.
///
/// # Errors
/// When they cannot be read, or mean nothing.
pub fn read(input: std::io::Stdin) -> Result<Option<Source>, OptionsError> {
    if input.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = input.lock().take(LIMIT).read_to_end(&mut bytes);
    read.map_err(OptionsError::Read)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Option<Source>, OptionsError> {
    let malformed =
        |error: &dyn std::fmt::Display| OptionsError::Malformed(one_line(&error.to_string()));
    let any = Any::decode(bytes).map_err(|error| malformed(&error))?;
    let extensions = any.extensions.iter().filter_map(|one| one.value.as_ref());
    // Others are another runtime's, such as those that `ctr` gives to all.
    let mut known = std::iter::once(&any).chain(extensions);
    let Some(any) = known.find(|any| any.type_url.ends_with(TYPE)) else {
        return Ok(None);
    };
    let options = Options::decode(&*any.value).map_err(|error| malformed(&error))?;
    let path = PathBuf::from(&options.config_path);
    if path.is_absolute() {
        return Ok(Some(Source::File(path)));
    }
    if !options.config_path.is_empty() {
        return Err(OptionsError::Relative(one_line(&options.config_path)));
    }
    if options.config_body.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8(options.config_body).map_err(|error| malformed(&error))?;
    Ok(Some(Source::Text(text)))
}

/// The configuration of a handler that `start` has left in `bundle`, if its handler has one.
pub fn left_in(bundle: &Path) -> Option<PathBuf> {
    Some(bundle.join(FILE)).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, options: &Options) -> Vec<u8> {
        let any = Any {
            type_url: type_url.to_owned(),
            value: options.encode_to_vec(),
            ..Any::default()
        };
        any.encode_to_vec()
    }

    fn options(path: &str, body: &str) -> Options {
        Options {
            config_path: path.to_owned(),
            config_body: body.into(),
        }
    }

    #[test]
    fn a_handler_has_a_file_or_a_text_or_neither() {
        let parse = |path, body| parse(&any(TYPE, &options(path, body))).unwrap();
        assert_eq!(
            parse("/etc/x.toml", "vcpus = 2"),
            Some(Source::File("/etc/x.toml".into()))
        );
        assert_eq!(
            parse("", "vcpus = 2"),
            Some(Source::Text("vcpus = 2".into()))
        );
        assert_eq!(parse("", ""), None);
        assert_eq!(super::parse(b"").unwrap(), None);
        let other = any("containerd.runc.v1.Options", &options("/etc/x.toml", ""));
        assert_eq!(super::parse(&other).unwrap(), None);
    }

    #[test]
    fn the_options_are_found_among_bootstrap_parameters() {
        let extension = |type_url: &str| Extension {
            value: Some(Any {
                type_url: type_url.to_owned(),
                value: options("/etc/x.toml", "").encode_to_vec(),
                ..Any::default()
            }),
        };
        let parameters = |extensions| Any {
            type_url: "a-container".to_owned(),
            value: b"k8s.io".to_vec(),
            extensions,
        };
        let given = parameters(vec![
            Extension::default(),
            extension("containerd.io/other"),
            extension("runtimeoptions.v1.Options"),
        ]);
        let found = parse(&given.encode_to_vec()).unwrap();
        assert_eq!(found, Some(Source::File("/etc/x.toml".into())));
        let none = parse(&parameters(Vec::new()).encode_to_vec()).unwrap();
        assert_eq!(none, None);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let error = parse(&any(TYPE, &options("x.toml", ""))).unwrap_err();
        assert!(error.to_string().contains("absolute"), "{error}");
        assert!(parse(&[0xff; 9]).is_err());
        let mut broken = Any {
            type_url: TYPE.to_owned(),
            value: vec![0xff; 9],
            ..Any::default()
        };
        assert!(parse(&broken.encode_to_vec()).is_err());
        // Field 3, two bytes, which are no text.
        broken.value = vec![0x1a, 2, 0xff, 0xfe];
        assert!(parse(&broken.encode_to_vec()).is_err());
    }

    #[test]
    fn what_start_has_left_is_found() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(left_in(bundle.path()), None);
        std::fs::write(bundle.path().join(FILE), "").unwrap();
        assert_eq!(left_in(bundle.path()), Some(bundle.path().join(FILE)));
    }
}
