//! `--balloon`: whether the guest gives memory back, and how much of it.

use std::str::FromStr;

use super::parse::{ParseError, mebibytes};

/// The balloon: `on`, `off` or `size=SIZE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonConfig {
    /// There is none.
    Off,
    /// The guest gives back what is free, and besides that as many bytes as these: whole MiB.
    On(u64),
}

impl Default for BalloonConfig {
    fn default() -> Self {
        BalloonConfig::On(0)
    }
}

impl FromStr for BalloonConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match (text, text.strip_prefix("size=")) {
            ("on", _) => Ok(BalloonConfig::default()),
            ("off", _) => Ok(BalloonConfig::Off),
            (_, Some(size)) => mebibytes(size).map(BalloonConfig::On),
            _ => Err(ParseError::new("write on, off or size=SIZE")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_on_or_off_or_has_a_size() {
        for (text, config) in [
            ("on", BalloonConfig::On(0)),
            ("off", BalloonConfig::Off),
            ("size=0", BalloonConfig::On(0)),
            ("size=64M", BalloonConfig::On(64 << 20)),
            ("size=1G", BalloonConfig::On(1 << 30)),
        ] {
            assert_eq!(text.parse(), Ok(config), "{text}");
        }
        for (text, hint) in [
            ("", "on, off or size=SIZE"),
            ("64M", "on, off or size=SIZE"),
            ("yes", "on, off or size=SIZE"),
            ("on,size=64M", "on, off or size=SIZE"),
            ("size=", "512M or 4G"),
            ("size=-1M", "512M or 4G"),
            ("size=4096", "whole MiB"),
        ] {
            let error = text.parse::<BalloonConfig>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
