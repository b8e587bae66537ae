//! What an image consists of: its layers and its configuration.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::Digest;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::OciError;
use super::archive::Archive;
use super::digest::Hashing;

/// Indexes that lead to indexes.
const MAX_INDEXES: usize = 4;
/// The annotation that names an image of a layout (OCI image specification, "Pre-Defined Annotation Keys").
const NAME: &str = "org.opencontainers.image.ref.name";

/// An image, verified but for its layers.
pub struct Image {
    pub(super) path: PathBuf,
    pub(super) archive: Archive,
    pub(super) layers: Vec<Layer>,
    /// The configuration file as it is.
    pub(super) document: Vec<u8>,
    /// The SHA-256 of the configuration, in hexadecimal digits. It covers the layers' digests, so it names the image.
    pub id: String,
}

/// Where a layer is, and what it must be.
pub(super) struct Layer {
    pub file: PathBuf,
    /// That of the file; `docker save` says none.
    pub digest: Option<Digest>,
    /// That of the tar archive in it.
    pub diff_id: Digest,
}

/// What an image says about the process that is run of it (OCI image specification, "Image Configuration").
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    /// `KEY=VALUE`.
    pub env: Option<Vec<String>>,
    /// What the command begins with.
    pub entrypoint: Option<Vec<String>>,
    /// The rest of the command, or all of it.
    pub cmd: Option<Vec<String>>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// The directory that the process begins in.
    pub working_dir: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    os: Option<String>,
    architecture: Option<String>,
    config: Option<Config>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: Digest,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An entry of `manifest.json`, which `docker save` writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: PathBuf,
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

impl Image {
    /// Opens the image that `reference` names: `PATH`, or `PATH:NAME` for one of several. `scratch` takes what must be decompressed.
    ///
    /// # Errors
    /// When there is none, or it is not what its digests say.
    pub fn open(reference: &str, scratch: &Path) -> Result<Self, OciError> {
        let (path, name) = split(reference);
        let archive = Archive::open(path, scratch)?;
        let read = Reader {
            path,
            archive: &archive,
        };
        let (document, layers) = if archive.has(Path::new("index.json")) {
            read.layout(name)?
        } else if archive.has(Path::new("manifest.json")) {
            read.saved(name)?
        } else {
            return Err(OciError::NoImage {
                path: path.into(),
                why: "it has neither index.json nor manifest.json".into(),
            });
        };
        let parsed: Document = read.parse("the configuration", &document)?;
        let platform =
            [&parsed.os, &parsed.architecture].map(|word| word.clone().unwrap_or_default());
        if platform != ["linux", "amd64"] {
            return Err(OciError::NoImage {
                path: path.into(),
                why: format!("it is for {}, not linux/amd64", platform.join("/")),
            });
        }
        if parsed.rootfs.diff_ids.len() != layers.len() {
            return Err(read.damaged("its configuration and its manifest have different layers"));
        }
        let layers = layers
            .into_iter()
            .zip(parsed.rootfs.diff_ids)
            .map(|((file, digest), diff_id)| Layer {
                file,
                digest,
                diff_id,
            })
            .collect();
        let id = super::digest::sha256(&document);
        Ok(Self {
            path: path.into(),
            archive,
            layers,
            document,
            id,
        })
    }
}

impl Config {
    /// That of a configuration file.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(document: &[u8]) -> serde_json::Result<Self> {
        let document: Document = serde_json::from_slice(document)?;
        Ok(document.config.unwrap_or_default())
    }
}

/// A path that exists is taken whole, whatever colons it has.
fn split(reference: &str) -> (&Path, Option<&str>) {
    if !Path::new(reference).exists()
        && let Some((path, name)) = reference.split_once(':')
        && Path::new(path).exists()
    {
        return (Path::new(path), Some(name));
    }
    (Path::new(reference), None)
}

fn blob(digest: &Digest) -> PathBuf {
    Path::new("blobs")
        .join(digest.algorithm().as_ref())
        .join(digest.digest())
}

type Parts = (Vec<u8>, Vec<(PathBuf, Option<Digest>)>);

struct Reader<'a> {
    path: &'a Path,
    archive: &'a Archive,
}

impl Reader<'_> {
    fn damaged(&self, why: impl Into<String>) -> OciError {
        OciError::Damaged {
            path: self.path.into(),
            why: why.into(),
        }
    }

    fn parse<T: DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, OciError> {
        serde_json::from_slice(bytes).map_err(|error| self.damaged(format!("{what}: {error}")))
    }

    fn document(&self, name: &Path) -> Result<Vec<u8>, OciError> {
        let read = self.archive.document(name);
        read.map_err(|error| self.damaged(format!("{}: {error}", name.display())))
    }

    fn verified(&self, digest: &Digest) -> Result<Vec<u8>, OciError> {
        let name = blob(digest);
        let bytes = self.document(&name)?;
        Hashing::new(bytes.as_slice(), digest)
            .and_then(|mut hashing| hashing.verify(digest))
            .map_err(|error: io::Error| self.damaged(format!("{}: {error}", name.display())))?;
        Ok(bytes)
    }

    /// Of an OCI layout (OCI image specification, "Image Layout").
    fn layout(&self, name: Option<&str>) -> Result<Parts, OciError> {
        let mut index: Index =
            self.parse("index.json", &self.document(Path::new("index.json"))?)?;
        let names = |index: &Index| {
            let names = index.manifests.iter();
            let names: Vec<_> = names
                .filter_map(|one| one.annotations.get(NAME).cloned())
                .collect();
            names.join(", ")
        };
        if let Some(name) = name {
            let all = names(&index);
            index
                .manifests
                .retain(|one| one.annotations.get(NAME).is_some_and(|is| is == name));
            if index.manifests.is_empty() {
                return Err(self.several(all));
            }
        }
        for depth in 0..MAX_INDEXES {
            if index.manifests.len() > 1 {
                index.manifests.retain(|one| {
                    let platform = one.platform.as_ref();
                    platform.is_none_or(|p| p.os == "linux" && p.architecture == "amd64")
                });
            }
            let chosen = match index.manifests.as_slice() {
                [chosen] => chosen,
                [] => return Err(self.damaged("it has no manifest for linux/amd64")),
                _ if depth == 0 => return Err(self.several(names(&index))),
                [chosen, ..] => chosen,
            };
            let bytes = self.verified(&chosen.digest)?;
            let kind = chosen.media_type.as_deref().unwrap_or_default();
            if kind.contains("image.index") || kind.contains("manifest.list") {
                index = self.parse("an index", &bytes)?;
                continue;
            }
            let manifest: Manifest = self.parse("the manifest", &bytes)?;
            let layers = manifest
                .layers
                .into_iter()
                .map(|one| (blob(&one.digest), Some(one.digest)));
            return Ok((self.verified(&manifest.config.digest)?, layers.collect()));
        }
        Err(self.damaged("its indexes lead to indexes"))
    }

    /// Of what `docker save` has written.
    fn saved(&self, name: Option<&str>) -> Result<Parts, OciError> {
        let document = self.document(Path::new("manifest.json"))?;
        let mut images: Vec<Saved> = self.parse("manifest.json", &document)?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let all: Vec<_> = images.iter().flat_map(tags).collect();
        if let Some(name) = name {
            images.retain(|image| tags(image).iter().any(|tag| tag == name));
        }
        let Ok([image]) = <[Saved; 1]>::try_from(images) else {
            return Err(self.several(all.join(", ")));
        };
        let config = self.document(&image.config)?;
        // The file's name is its digest, of one kind or another of `docker save`.
        let stem = image.config.file_stem().and_then(|stem| stem.to_str());
        let said = stem.unwrap_or_default();
        let found = super::digest::sha256(&config);
        if said.len() == found.len() && said != found {
            return Err(self.damaged(format!(
                "{} has the digest sha256:{found}",
                image.config.display()
            )));
        }
        Ok((
            config,
            image.layers.into_iter().map(|file| (file, None)).collect(),
        ))
    }

    fn several(&self, names: String) -> OciError {
        OciError::Several {
            path: self.path.into(),
            names,
        }
    }
}
