//! Reading the values that a user writes on a command line.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use super::{DiskConfig, DiskSerial, HostFile, MemorySize, VcpuCount, VmName, VsockConfig};

/// What is wrong with a value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl ParseError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        ParseError(text.into())
    }
}

impl VmName {
    /// The longest name, which is the longest id of containerd's.
    const MAX: usize = 76;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if starts && text.len() <= Self::MAX && text.chars().all(allowed) {
            return Ok(VmName(text.into()));
        }
        Err(ParseError(format!(
            "a name has 1 to {} letters, digits, '_', '.' or '-', and begins with a letter or a digit",
            Self::MAX
        )))
    }
}

impl VcpuCount {
    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for VcpuCount {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.parse() {
            Ok(count) if count > 0 => Ok(VcpuCount(count)),
            _ => Err(ParseError("a VM has 1 to 255 vCPUs".into())),
        }
    }
}

impl MemorySize {
    /// Less than this, and no kernel boots.
    const MIN: u64 = 32 << 20;
    const MAX: u64 = 1 << 40;

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0 >> 20)
    }
}

/// The descriptors below are standard input, output and error.
const FIRST_FD: RawFd = 3;

/// The number of a descriptor that this process was started with.
pub(super) fn descriptor(text: &str) -> Result<RawFd, ParseError> {
    let fd = text.parse().ok().filter(|fd| *fd >= FIRST_FD);
    fd.ok_or_else(|| {
        ParseError(format!(
            "fd={text}: write the number of an open descriptor, from {FIRST_FD} on"
        ))
    })
}

/// A number of bytes, which are whole MiB: as `512M` or `4G`.
///
/// # Errors
/// When it is no such size.
pub fn mebibytes(text: &str) -> Result<u64, ParseError> {
    let number = text.strip_suffix("iB").unwrap_or(text);
    let unit = |units: [char; 2]| number.strip_suffix(units);
    let (digits, shift) = None
        .or(unit(['m', 'M']).map(|digits| (digits, 20)))
        .or(unit(['g', 'G']).map(|digits| (digits, 30)))
        .or(unit(['t', 'T']).map(|digits| (digits, 40)))
        .unwrap_or((number, 0));
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| ParseError("write a size as 512M or 4G".into()))?;
    if bytes % (1 << 20) != 0 {
        return Err(ParseError(
            "memory comes in whole MiB; write a size as 512M or 4G".into(),
        ));
    }
    Ok(bytes)
}

impl FromStr for MemorySize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bytes = mebibytes(text)?;
        if !(Self::MIN..=Self::MAX).contains(&bytes) {
            return Err(ParseError("a VM has 32M to 1T of memory".into()));
        }
        Ok(MemorySize(bytes))
    }
}

impl FromStr for DiskConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut fields = Fields::of(text, "path=FILE|fd=N[,readonly][,serial=TEXT]")?;
        let file = match fields.take("fd") {
            Some(number) => HostFile::Given(descriptor(number)?),
            None => HostFile::Path(fields.path("path")?),
        };
        let disk = DiskConfig {
            file,
            readonly: fields.flag("readonly"),
            serial: fields.take("serial").map(str::parse).transpose()?,
        };
        fields.end()?;
        Ok(disk)
    }
}

impl DiskSerial {
    /// The bytes, padded with zeros.
    pub fn bytes(self) -> [u8; 20] {
        self.0
    }
}

impl FromStr for DiskSerial {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; 20];
        let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        match bytes.get_mut(..text.len()) {
            Some(place) if printable && !text.is_empty() => place.copy_from_slice(text.as_bytes()),
            _ => {
                return Err(ParseError(format!(
                    "serial={text}: a serial number has 1 to 20 printable ASCII characters"
                )));
            }
        }
        Ok(DiskSerial(bytes))
    }
}

impl FromStr for VsockConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        /// The guest's context id when there is no reason for another: 0 to 2 have meanings.
        const CID: u32 = 3;
        let mut fields = Fields::of(text, "socket=PATH[,cid=N]")?;
        let cid = match fields.take("cid") {
            None => CID,
            Some(text) => text
                .parse()
                .ok()
                .filter(|cid| (CID..u32::MAX).contains(cid))
                .ok_or_else(|| {
                    ParseError(format!("cid={text}: a guest's context id is at least 3"))
                })?,
        };
        let vsock = VsockConfig {
            socket: fields.path("socket")?,
            cid,
        };
        fields.end()?;
        Ok(vsock)
    }
}

/// `key=value` and `key`, separated by commas.
pub(super) struct Fields<'t> {
    form: &'static str,
    fields: Vec<(&'t str, Option<&'t str>)>,
}

impl<'t> Fields<'t> {
    pub(super) fn of(text: &'t str, form: &'static str) -> Result<Self, ParseError> {
        let mut fields: Vec<(&str, Option<&str>)> = Vec::new();
        for field in text.split(',') {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (field, None),
            };
            if fields.iter().any(|(other, _)| *other == key) {
                return Err(ParseError(format!("{key} stands twice; write {form}")));
            }
            fields.push((key, value));
        }
        Ok(Fields { form, fields })
    }

    /// None of them.
    pub(super) fn none(form: &'static str) -> Self {
        Fields {
            form,
            fields: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, key: &str) -> Option<&'t str> {
        let at = self
            .fields
            .iter()
            .position(|(other, value)| *other == key && value.is_some())?;
        self.fields.remove(at).1
    }

    pub(super) fn required(&mut self, key: &str) -> Result<String, ParseError> {
        match self.take(key) {
            Some(value) if !value.is_empty() => Ok(value.into()),
            _ => Err(self.missing(key)),
        }
    }

    pub(super) fn missing(&self, what: &str) -> ParseError {
        ParseError(format!("{what} is missing; write {}", self.form))
    }

    pub(super) fn path(&mut self, key: &str) -> Result<PathBuf, ParseError> {
        self.required(key).map(PathBuf::from)
    }

    pub(super) fn flag(&mut self, key: &str) -> bool {
        let at = self
            .fields
            .iter()
            .position(|(other, value)| *other == key && value.is_none());
        at.map(|at| self.fields.remove(at)).is_some()
    }

    pub(super) fn end(self) -> Result<(), ParseError> {
        match self.fields.first() {
            None => Ok(()),
            Some((key, _)) => Err(ParseError(format!(
                "'{key}' means nothing here; write {}",
                self.form
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, mib) in [
            ("512M", 512),
            ("4G", 4096),
            ("1g", 1024),
            ("256MiB", 256),
            ("268435456", 256),
        ] {
            assert_eq!(
                text.parse::<MemorySize>().unwrap().bytes(),
                mib << 20,
                "{text}"
            );
        }
        for text in [
            "",
            "M",
            "-1M",
            "1.5G",
            "16M",
            "2T",
            "99999999999999999999G",
            "33554433",
            "é",
            "4é",
        ] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_needs_a_path_and_nothing_unknown() {
        let disk: DiskConfig = "path=/a,readonly".parse().unwrap();
        assert_eq!(
            disk,
            DiskConfig {
                file: HostFile::Path("/a".into()),
                readonly: true,
                serial: None,
            }
        );
        let disk: DiskConfig = "fd=3".parse().unwrap();
        assert_eq!(disk.file, HostFile::Given(3));
        for text in [
            "",
            "readonly",
            "path=",
            "path=/a,ro",
            "path=/a,path=/b",
            "path=/a,readonly=1",
            "fd=",
            "fd=2",
            "fd=-1",
            "fd=3:4",
            "fd=3,path=/a",
        ] {
            assert!(text.parse::<DiskConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_serial_number_is_short_and_printable() {
        let serial = |text: &str| {
            let disk = format!("path=/a,serial={text}").parse::<DiskConfig>()?;
            Ok::<_, ParseError>(disk.serial.unwrap().bytes())
        };
        assert_eq!(serial("a b=7"), Ok(*b"a b=7\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
        assert_eq!(serial("01234567890123456789"), Ok(*b"01234567890123456789"));
        for text in ["", "012345678901234567890", "a\n", "\u{e9}", "\u{7f}"] {
            let error = serial(text).unwrap_err().to_string();
            assert!(error.contains("1 to 20 printable ASCII"), "{error}");
        }
    }

    #[test]
    fn a_vsock_has_a_guest_cid() {
        assert_eq!("socket=/s".parse::<VsockConfig>().unwrap().cid, 3);
        assert_eq!("cid=9,socket=/s".parse::<VsockConfig>().unwrap().cid, 9);
        for text in ["socket=/s,cid=2", "socket=/s,cid=4294967295", "cid=3"] {
            assert!(text.parse::<VsockConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_no_path() {
        assert!("web-1".parse::<VmName>().is_ok());
        for text in ["", ".", "../x", "a/b", "-a", "ä"] {
            assert!(text.parse::<VmName>().is_err(), "{text}");
        }
    }
}
