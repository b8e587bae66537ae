//! The guest's files and the virtiofsd that the shim is configured with: `orlop run --image` uses the same. And
//! where its pods are.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::guest_files::GuestFiles;

/// The variable that names another file.
const VARIABLE: &str = "ORLOP_CONFIG";
const FILE: &str = "/etc/orlop/config.toml";

/// What of the configuration matters here.
#[derive(Deserialize)]
#[serde(default)]
pub struct Settings {
    /// What a guest boots from.
    #[serde(flatten)]
    pub guest: GuestFiles,
    /// The program that serves volumes, if it is said.
    pub virtiofsd: Option<PathBuf>,
    /// Seconds until a VM whose agent is not ready is given up.
    pub boot_timeout: u64,
    /// Where the shim keeps what it has of its pods.
    pub state: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guest: GuestFiles::default(),
            virtiofsd: None,
            boot_timeout: 30,
            state: "/run/orlop".into(),
        }
    }
}

impl Settings {
    /// Those of this machine.
    ///
    /// # Errors
    /// When the file is wrong, or one that is named is absent.
    pub fn load() -> anyhow::Result<Self> {
        let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        let path = named.as_ref().map_or(Path::new(FILE), Path::new);
        if named.is_none() && !path.exists() {
            return Ok(Self::default());
        }
        let wrong = || format!("the configuration {}", path.display());
        let text = std::fs::read_to_string(path).with_context(wrong)?;
        toml::from_str(&text).with_context(wrong)
    }
}
