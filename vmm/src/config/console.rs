//! `--console` and `--console-device`: where the console goes, and which device it is.

use std::path::PathBuf;
use std::str::FromStr;

use super::DEFAULT_CMDLINE;
use super::parse::ParseError;

/// Where the console goes: `stdio`, `null`, `pty` or `file=F`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// To and from the terminal.
    Stdio,
    /// Nowhere.
    Null,
    /// To and from a pseudo-terminal of its own.
    Pty,
    /// To a file, which is made if it is absent and appended to if not.
    File(PathBuf),
}

/// Which of the guest's devices is its console: `serial` or `virtio`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// The serial port.
    #[default]
    Serial,
    /// A virtio-console, which has a size. What the guest writes to its serial port is shown as well.
    Virtio,
}

impl FromStr for ConsoleConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(ConsoleConfig::Stdio),
            ("null", _) => Ok(ConsoleConfig::Null),
            ("pty", _) => Ok(ConsoleConfig::Pty),
            (_, Some(path)) if !path.is_empty() => Ok(ConsoleConfig::File(path.into())),
            _ => Err(ParseError::new("write stdio, null, pty or file=FILE")),
        }
    }
}

impl ConsoleDevice {
    /// What Linux calls it.
    pub fn in_linux(self) -> &'static str {
        match self {
            ConsoleDevice::Serial => "ttyS0",
            ConsoleDevice::Virtio => "hvc0",
        }
    }

    /// The command line of a VM whose user gave none.
    pub fn default_cmdline(self) -> String {
        DEFAULT_CMDLINE.replacen(ConsoleDevice::Serial.in_linux(), self.in_linux(), 1)
    }
}

impl FromStr for ConsoleDevice {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "serial" => Ok(ConsoleDevice::Serial),
            "virtio" => Ok(ConsoleDevice::Virtio),
            _ => Err(ParseError::new("write serial or virtio")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_has_an_other_end() {
        for (text, console) in [
            ("stdio", ConsoleConfig::Stdio),
            ("null", ConsoleConfig::Null),
            ("pty", ConsoleConfig::Pty),
            ("file=a,b", ConsoleConfig::File("a,b".into())),
        ] {
            assert_eq!(text.parse(), Ok(console), "{text}");
        }
        for text in ["", "file", "file=", "pty=", "tty", "STDIO"] {
            let error = text.parse::<ConsoleConfig>().unwrap_err().to_string();
            assert!(error.contains("pty or file=FILE"), "{text}: {error}");
        }
    }

    #[test]
    fn the_default_command_line_names_the_console() {
        let cmdline = |text: &str| text.parse().map(ConsoleDevice::default_cmdline);
        assert_eq!(cmdline("serial").unwrap(), DEFAULT_CMDLINE);
        let virtio = cmdline("virtio").unwrap();
        assert_eq!(virtio.replace("hvc0", "ttyS0"), DEFAULT_CMDLINE);
        assert!(virtio.starts_with("console=hvc0 quiet"), "{virtio}");
        assert!(cmdline("hvc0").is_err());
    }
}
