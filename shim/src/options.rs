//! What containerd writes to `start`: what its configuration says of the runtime handler that a pod came by, which is a configuration of the
//! handler's own, and with that whether it wants its answer as [`BootstrapResult`].
//!
//! containerd writes the handler's `options` to the standard input of `start`: as a protobuf `Any`, or since 2.3 as one of the extensions of its
//! `BootstrapParams`, in which that `Any`'s two fields have the container's id and namespace. For a runtime that it does not know they are
//! a `runtimeoptions.v1.Options`: the path of a file (`ConfigPath`), or since containerd 1.7 the text itself. `start` leaves the text in the
//! bundle, where the shim and `delete` find it: what a pod was made with is what it is cleaned up with.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::protobuf::Message as _;
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

/// What `start` is told on its standard input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The handler's configuration, if it has one.
    pub source: Option<Source>,
    /// Whether it came in `BootstrapParams`, which are answered in kind.
    pub by_bootstrap: bool,
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

/// Reads what containerd has written to `input` for container `id` of `namespace`.
///
/// # Errors
/// When it cannot be read, or means nothing.
pub fn read(input: std::io::Stdin, namespace: &str, id: &str) -> Result<Told, OptionsError> {
    if input.is_terminal() {
        return Ok(Told::default());
    }
    let mut bytes = Vec::new();
    let read = input.lock().take(LIMIT).read_to_end(&mut bytes);
    read.map_err(OptionsError::Read)?;
    parse(&bytes, namespace, id)
}

fn parse(bytes: &[u8], namespace: &str, id: &str) -> Result<Told, OptionsError> {
    let any = Any::decode(bytes).map_err(|error| malformed(&error))?;
    Ok(Told {
        by_bootstrap: is_bootstrap(&any, namespace, id),
        source: source(&any)?,
    })
}

/// An `Any` has a type's name where `BootstrapParams` have the container's id, which no type's name is.
fn is_bootstrap(any: &Any, namespace: &str, id: &str) -> bool {
    any.type_url == id && any.value == namespace.as_bytes()
}

fn malformed(error: &dyn std::fmt::Display) -> OptionsError {
    OptionsError::Malformed(one_line(&error.to_string()))
}

/// What `start` prints: where the shim listens. To `BootstrapParams` it answers in kind, with the version of the task interface that containerd
/// is to speak; whoever writes none takes a mere address for version 2.
///
/// # Errors
/// Not expected: what has its fields can be written.
pub fn answer(url: &str, told: &Told) -> containerd_shim_protos::protobuf::Result<Vec<u8>> {
    if !told.by_bootstrap {
        return Ok(url.as_bytes().to_vec());
    }
    BootstrapResult {
        version: TASK_API_VERSION,
        address: url.to_owned(),
        protocol: "ttrpc".to_owned(),
        ..BootstrapResult::default()
    }
    .write_to_bytes()
}

fn source(any: &Any) -> Result<Option<Source>, OptionsError> {
    let extensions = any.extensions.iter().filter_map(|one| one.value.as_ref());
    // Others are another runtime's, such as those that `ctr` gives to all.
    let mut known = std::iter::once(any).chain(extensions);
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

    /// The source that is told to the container `a-container` of `k8s.io`.
    fn parse(bytes: &[u8]) -> Result<Option<Source>, OptionsError> {
        super::parse(bytes, "k8s.io", "a-container").map(|told| told.source)
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
        assert_eq!(super::parse(b"", "n", "c").unwrap(), Told::default());
        let other = any("containerd.runc.v1.Options", &options("/etc/x.toml", ""));
        assert_eq!(super::parse(&other, "n", "c").unwrap(), Told::default());
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
    fn parameters_are_answered_in_kind_and_options_with_an_address() {
        let parameters = Any {
            type_url: "a-container".to_owned(),
            value: b"k8s.io".to_vec(),
            ..Any::default()
        };
        let told = super::parse(&parameters.encode_to_vec(), "k8s.io", "a-container").unwrap();
        assert!(told.by_bootstrap);
        let answer = answer("unix:///s", &told).unwrap();
        let answer = BootstrapResult::parse_from_bytes(&answer).unwrap();
        assert_eq!((answer.version, &*answer.protocol), (3, "ttrpc"));
        assert_eq!(answer.address, "unix:///s");
        let options = any(TYPE, &options("", ""));
        for (bytes, id) in [(&*options, "a-container"), (b"", "a-container")] {
            let told = super::parse(bytes, "k8s.io", id).unwrap();
            assert_eq!(super::answer("unix:///s", &told).unwrap(), b"unix:///s");
        }
        let other = super::parse(&parameters.encode_to_vec(), "k8s.io", "another").unwrap();
        assert!(!other.by_bootstrap, "it is for another container");
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
