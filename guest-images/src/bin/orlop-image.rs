//! Makes the files that a guest boots from: `orlop-image vmlinux`, `kernel`, `initramfs` and `image`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use orlop_guest_images::bzimage;
use orlop_guest_images::image;
use orlop_guest_images::initramfs::{self, Signatures};
use orlop_guest_images::kernel::{self, Build};

/// Makes the files that an Orlop guest boots from.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take the uncompressed kernel (ELF, with a PVH entry point) out of a distribution's vmlinuz
    Vmlinux {
        /// The packaged kernel, for example /boot/vmlinuz-6.1.0-56-cloud-amd64
        #[arg(long, value_name = "FILE")]
        bzimage: PathBuf,
        /// Where the kernel is written to
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Build a kernel of our own from Linux' sources: vmlinux, bzImage, and its configuration
    Kernel {
        /// The source tree, which is not written to
        #[arg(long, value_name = "DIR")]
        source: PathBuf,
        /// The configuration, in place of the one that is built in: options for `make allnoconfig`, all of which must come true
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Where the kernel goes; while it is built, a few hundred MiB of objects as well
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Where the output of the build's programs goes [default: build.log in the output directory]
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// How many programs run at a time [default: one for each processor]
        #[arg(long, value_name = "N")]
        jobs: Option<NonZero<usize>>,
    },
    /// Put the agent and the kernel modules that a guest needs together
    Initramfs {
        /// The agent, linked statically
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// The kernel's modules, for example /lib/modules/6.1.0-56-cloud-amd64; left out for a kernel that has all built in
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Keep the modules' signatures, for a kernel that insists on them (guests start more slowly)
        #[arg(long)]
        keep_signatures: bool,
        /// Where the initramfs (a cpio archive) is written to
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Make a file system with the agent, for guests that have it in persistent memory; their kernel has all built in
    Image {
        /// The agent, linked statically
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// Where the image (an EROFS) is written to
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Vmlinux { bzimage, output } => {
            let size = fs::metadata(&bzimage)
                .with_context(|| format!("cannot read {}", bzimage.display()))?
                .len();
            if size > bzimage::MAX_KERNEL as u64 {
                bail!("{} is too large to be a kernel", bzimage.display());
            }
            let image =
                fs::read(&bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
            // The library's messages go on after the file's name.
            let kernel = bzimage::vmlinux(&image)
                .map_err(|error| anyhow::anyhow!("{} {error}", bzimage.display()))?;
            write_whole(&output, |file| fs::write(file, &kernel).map_err(Into::into))
        }
        Command::Kernel {
            source,
            config,
            output,
            log,
            jobs,
        } => {
            let fragment = match config {
                Some(path) => fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?,
                None => kernel::FRAGMENT.to_owned(),
            };
            fs::create_dir_all(&output)
                .with_context(|| format!("cannot make {}", output.display()))?;
            let build = Build {
                source: &source,
                fragment: &fragment,
                log: &log.unwrap_or_else(|| output.join("build.log")),
                output: &output,
                jobs: jobs
                    .or_else(|| std::thread::available_parallelism().ok())
                    .map_or(1, NonZero::get),
            };
            // A caller that has gone ends the build.
            build.run(|report| writeln!(io::stdout(), "{report}"))?;
            Ok(())
        }
        Command::Initramfs {
            agent,
            modules,
            keep_signatures,
            output,
        } => write_whole(&output, |file| {
            let out = BufWriter::new(File::create(file)?);
            let signatures = if keep_signatures {
                Signatures::Keep
            } else {
                Signatures::Drop
            };
            initramfs::build(&agent, modules.as_deref(), signatures, out).map_err(Into::into)
        }),
        Command::Image { agent, output } => write_whole(&output, |file| {
            image::build(&agent, file).map_err(Into::into)
        }),
    }
}

/// Lets `write` fill a file beside `output`, which takes its place only when it is complete.
fn write_whole(
    output: &Path,
    write: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(name) = output.file_name() else {
        bail!("{} is not the name of a file", output.display());
    };
    let mut partial = name.to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = output.with_file_name(partial);
    let result = write(&partial).and_then(|()| {
        fs::rename(&partial, output).with_context(|| format!("cannot write {}", output.display()))
    });
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}
