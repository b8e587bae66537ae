//! A directory of the host's in a container: `HOST:GUEST[:ro]`.

use std::path::PathBuf;
use std::str::FromStr;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The directory on the host.
    pub host: PathBuf,
    /// Where the container has it.
    pub guest: String,
    /// Whether the container may not write.
    pub readonly: bool,
}

impl Volume {
    /// The tag of the volume of this number.
    pub fn tag(number: usize) -> String {
        format!("volume{number}")
    }

    /// As `--fs` has it.
    ///
    /// # Errors
    /// When the host's path has a comma in it.
    pub fn share(&self, number: usize) -> anyhow::Result<orlop_vmm::config::ShareConfig> {
        let readonly = if self.readonly { ",readonly" } else { "" };
        let share = format!(
            "tag={},path={}{readonly}",
            Self::tag(number),
            self.host.display()
        );
        Ok(share.parse()?)
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, guest, readonly) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [host, guest] => (*host, *guest, false),
            [host, guest, "ro"] => (*host, *guest, true),
            _ => return Err("write HOST:GUEST or HOST:GUEST:ro".into()),
        };
        if host.is_empty() || !guest.starts_with('/') {
            return Err("HOST is a directory here, GUEST an absolute path in the container".into());
        }
        Ok(Self {
            host: host.into(),
            guest: guest.into(),
            readonly,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_two_paths() {
        let volume: Volume = "/srv:/data:ro".parse().unwrap();
        assert_eq!((volume.guest.as_str(), volume.readonly), ("/data", true));
        for wrong in ["/srv", "/srv:data", ":/data", "/a:/b:rx"] {
            assert!(wrong.parse::<Volume>().is_err(), "{wrong}");
        }
    }
}
