//! What the outside and the inside of a virtual host say to each other.
//!
//! Each of the four [`Port`]s is a virtio-serial port inside and a unix socket outside. Three carry the command's standard
//! streams as they are; the fourth carries [`Report`]s, one JSON text per line.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One virtio-serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The command's standard input.
    Input,
    /// The command's standard output.
    Output,
    /// The command's standard error.
    Error,
    /// [`Report`]s from the inside.
    Report,
}

impl Port {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Input, Self::Output, Self::Error, Self::Report];

    /// The name of the virtio-serial port.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "orlop.stdin",
            Self::Output => "orlop.stdout",
            Self::Error => "orlop.stderr",
            Self::Report => "orlop.report",
        }
    }
}

/// What the inside is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Its working directory.
    pub directory: PathBuf,
    /// Its environment, whole.
    pub environment: Vec<(OsString, OsString)>,
    /// `lib/modules/VERSION` of the virtual host's kernel, as a path in the shared root, if it has modules.
    pub modules: Option<PathBuf>,
}

/// What the inside reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The host is up and the command is about to start.
    Up,
    /// The host still schedules processes; sent every [`HEARTBEAT_SECONDS`].
    Alive,
    /// The host could not be made ready.
    Failed(String),
    /// The command ended with this status; all of its output has been passed on.
    Ended(u8),
}

/// The time between two [`Report::Alive`].
pub const HEARTBEAT_SECONDS: u64 = 1;
