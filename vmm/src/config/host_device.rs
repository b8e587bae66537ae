//! A PCI device of the host's that the guest is to have: `ADDRESS[,id=NAME][,fd=N[,iommu=N]]`.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use super::ParseError;
use super::parse::{Fields, descriptor};

/// Where a PCI device is on the host, as lspci and sysfs write it: `0000:65:00.0`. The domain may be left out when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A device of the host's, and what its user calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDeviceConfig {
    /// Where it is.
    pub address: HostAddress,
    /// What to call it; `None` for its address.
    pub id: Option<String>,
    /// What of it this process has open already.
    pub files: VfioFiles,
}

/// Files of VFIO's that this process was started with, for a device. They are its own from then on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VfioFiles {
    /// The device's node (`/dev/vfio/devices/vfioN`), or its group's (`/dev/vfio/N`).
    pub device: Option<RawFd>,
    /// `/dev/iommu` for the first, `/dev/vfio/vfio` for the second. A VM's devices are all in that of the first of them.
    pub iommu: Option<RawFd>,
}

impl HostDeviceConfig {
    /// The longest name.
    const ID_MAX: usize = 64;
}

impl HostAddress {
    /// The number of the function in its slot.
    pub fn function(self) -> u8 {
        self.function
    }

    /// The same for each function of a slot.
    pub fn slot(self) -> (u32, u8, u8) {
        (self.domain, self.bus, self.device)
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostAddress {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// A number of exactly so many hexadecimal digits, or of more where the domain has more.
fn hex(text: &str, digits: usize, or_more: bool) -> Option<u32> {
    let fits = text.len() == digits || (or_more && (digits..=8).contains(&text.len()));
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (fits && is_hex).then(|| u32::from_str_radix(text, 16).ok())?
}

impl FromStr for HostAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
            Some(HostAddress {
                domain: hex(domain, 4, true)?,
                bus: hex(bus, 2, false)?.try_into().ok()?,
                device: hex(device, 2, false)?
                    .try_into()
                    .ok()
                    .filter(|device| *device < 32)?,
                function: hex(function, 1, false)?
                    .try_into()
                    .ok()
                    .filter(|function| *function < 8)?,
            })
        };
        parse().ok_or_else(|| {
            ParseError::new(format!(
                "{text:?} is no address of a PCI device; write it as lspci does, such as 0000:65:00.0"
            ))
        })
    }
}

impl FromStr for HostDeviceConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, rest) = match text.split_once(',') {
            Some((address, rest)) => (address, Some(rest)),
            None => (text, None),
        };
        let form = "ADDRESS[,id=NAME][,fd=N[,iommu=N]]";
        let mut fields = match rest {
            Some(rest) => Fields::of(rest, form)?,
            None => Fields::none(form),
        };
        let id = fields.take("id").map(str::to_owned);
        let files = VfioFiles {
            device: fields.take("fd").map(descriptor).transpose()?,
            iommu: fields.take("iommu").map(descriptor).transpose()?,
        };
        if files.iommu.is_some() && files.device.is_none() {
            return Err(fields.missing("fd"));
        }
        fields.end()?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if let Some(id) = &id
            && (id.is_empty() || id.len() > Self::ID_MAX || !id.chars().all(allowed))
        {
            return Err(ParseError::new(format!(
                "id={id}: a device's name has 1 to {} letters, digits, '_', '.' or '-'",
                Self::ID_MAX
            )));
        }
        Ok(HostDeviceConfig {
            address: address.parse()?,
            id,
            files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["0000:65:00.0", "0001:ff:1f.7", "10000:01:00.0"] {
            assert_eq!(text.parse::<HostAddress>().unwrap().to_string(), text);
        }
        let short: HostAddress = "65:00.1".parse().unwrap();
        assert_eq!(short.to_string(), "0000:65:00.1");
        for text in [
            "",
            "65:00",
            "65:20.0",
            "65:00.8",
            "065:00.0",
            "0000:65:00.0/..",
            "+000:65:00.0",
            "000:65:00.0",
            "../65:00.0",
            "0000:6é:00.0",
        ] {
            assert!(text.parse::<HostAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_may_have_a_name() {
        let device: HostDeviceConfig = "65:00.0,id=gpu0".parse().unwrap();
        assert_eq!(device.id.as_deref(), Some("gpu0"));
        for text in ["65:00.0,id=", "65:00.0,id=a b", "65:00.0,x", "id=a"] {
            assert!(text.parse::<HostDeviceConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_may_be_open_already() {
        let files = |text: &str| text.parse::<HostDeviceConfig>().map(|device| device.files);
        assert_eq!(files("65:00.0").unwrap(), VfioFiles::default());
        let both = VfioFiles {
            device: Some(9),
            iommu: Some(10),
        };
        assert_eq!(files("65:00.0,fd=9,iommu=10,id=a").unwrap(), both);
        for text in [
            "fd=2",
            "fd=",
            "fd=x",
            "iommu=9",
            "fd=9,iommu=1",
            "fd=9,fd=9",
        ] {
            let error = files(&format!("65:00.0,{text}"));
            assert!(error.is_err(), "{text}");
        }
    }
}
