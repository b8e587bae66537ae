//! `orlop image`: the images that are kept as disks.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use orlop_vmm::oci::{Image, Kept, Store};

use crate::output;

/// What `orlop image` is given.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// What is done with images.
#[derive(clap::Subcommand)]
enum What {
    /// List the images that are kept
    Ls,
    /// Make the disk of an image, so that `orlop run --image` need not
    Build {
        /// An OCI layout (a directory or an archive), or an archive of `docker save`; PATH:NAME for one of several
        image: String,
    },
    /// Remove images' disks
    Rm {
        /// What an image was first asked for by, or four digits or more that its digest begins with
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Does it.
///
/// # Errors
/// When an image cannot be had, is not there, or is in use.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let store = Store::of_machine();
    match arguments.what {
        What::Ls => {
            let mut table = format!("{:<12}  {:>6}  NAME\n", "ID", "LAYERS");
            for record in store.list()? {
                let id = record.id.get(..12).unwrap_or(&record.id);
                writeln!(table, "{id}  {:>6}  {}", record.layers, record.name)?;
            }
            output::print(&table)?;
        }
        What::Build { image } => drop(provide(&image)?),
        What::Rm { images } => {
            for image in &images {
                store.remove(&store.find(image)?)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the image that `reference` names as a disk, and says on a terminal what it does.
///
/// # Errors
/// When it cannot be had.
pub fn provide(reference: &str) -> anyhow::Result<Kept> {
    let store = Store::of_machine();
    let image = Image::open(reference, &store.unpacking())?;
    let shown = std::io::stderr().is_terminal();
    Ok(store.provide(&image, reference, &mut |number, count| {
        if shown {
            eprintln!("orlop: unpacking layer {number} of {count}");
        }
    })?)
}
