//! Containers' images, as the OCI image specification has them, and as `docker save` writes them.
//!
//! An image is opened where it lies ([`Image::open`]): its manifest and configuration are read and verified, its layers are
//! not read yet. [`Store::provide`] has its root file system as a disk (an erofs): one that is there already, or one that is made
//! now. What an image says is never trusted: content is what its digest says or it is refused, and no name in a layer leads
//! out of the root file system.
//!
//! - [`archive`]: the files of an image, in a directory or in a tar archive;
//! - [`image`]: manifest and configuration;
//! - [`layer`]: the bytes of a layer, decompressed;
//! - [`unpack`]: layers applied to a directory, and [`allowance`] of how much;
//! - [`store`]: the disks, kept by digest;
//! - [`user`]: names of users, in the words of an image's `/etc/passwd`.

mod allowance;
mod archive;
mod digest;
mod image;
mod layer;
mod store;
mod unpack;
mod user;

use std::io;
use std::path::{Path, PathBuf};

pub use image::{Config, Image};
pub use store::{Kept, Record, Store};
pub use user::{User, UserError};

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// To do what.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no image.
    #[error("{} is no image: {why}; give an OCI layout (a directory or an archive) or an archive of `docker save`", path.display())]
    NoImage {
        /// Which file.
        path: PathBuf,
        /// What it lacks.
        why: String,
    },
    /// The file holds several images.
    #[error("{} holds several images: choose one with {}:NAME, NAME one of {names}", path.display(), path.display())]
    Several {
        /// Which file.
        path: PathBuf,
        /// Their names, with commas.
        names: String,
    },
    /// The image is damaged, or not what its digests say.
    #[error("the image {} is damaged: {why}; fetch it again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An entry of a layer is refused.
    #[error("layer {layer} of the image is refused: {entry}: {why}")]
    Entry {
        /// Which layer, from 1.
        layer: usize,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// An entry of a layer cannot be written.
    #[error("cannot unpack {entry} of layer {layer}")]
    Write {
        /// Which layer, from 1.
        layer: usize,
        /// The entry's name.
        entry: String,
        /// What the system says.
        source: io::Error,
    },
    /// Only root may give files to other users.
    #[error(
        "images are unpacked by root alone, for their files belong to many users: run orlop as root"
    )]
    NotRoot,
    /// The program that makes the disk failed.
    #[error("cannot make the image's disk: {0}")]
    Disk(String),
    /// There is no such image in the store.
    #[error("there is no image {0}: `orlop image ls` lists those that are kept")]
    Unknown(String),
}

impl OciError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

#[cfg(test)]
mod tests;
