//! The flags of `orlop run` that are about a container.

use clap::Args;

use super::volume::Volume;

/// See above.
#[derive(Args, Clone, Debug)]
// The group would have the name of the one of `orlop run`.
#[group(skip)]
pub struct Flags {
    /// Run a command of this image: an OCI layout (directory or archive) or an archive of `docker save`; with :NAME if it holds several
    #[arg(long, value_name = "PATH[:NAME]", conflicts_with_all = ["detach", "no_boot", "vsock", "console"])]
    pub image: Option<String>,
    /// Give the command our standard input
    #[arg(long, short, requires = "image")]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(long, short, requires = "image")]
    pub tty: bool,
    /// A variable of the command's environment; without =VALUE, as it is in ours (repeatable)
    #[arg(long, short, value_name = "KEY[=VALUE]", requires = "image")]
    pub env: Vec<String>,
    /// A directory of the host's in the container, or with :ro a copy of a file (repeatable)
    #[arg(
        long = "volume",
        short,
        value_name = "HOST:GUEST[:ro]",
        requires = "image"
    )]
    pub volumes: Vec<Volume>,
    /// The directory that the command begins in [default: the image's]
    #[arg(long, short, value_name = "PATH", requires = "image")]
    pub workdir: Option<String>,
    /// Who runs the command: names or numbers [default: the image's]
    #[arg(long, short, value_name = "USER[:GROUP]", requires = "image")]
    pub user: Option<String>,
    /// The command, behind the image's entrypoint [default: the image's]
    #[arg(last = true, value_name = "COMMAND", requires = "image")]
    pub command: Vec<String>,
}
