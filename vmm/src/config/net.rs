//! `--net`: which tap, and as which card the guest sees it.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use super::parse::{Fields, ParseError, descriptor};
use crate::devices::virtio::net::PAIRS_MAX;

/// A network device: `tap=NAME[,queues=N]` or `fd=N[:N...]`, either with `[,mac=MAC][,vhost=auto|on|off]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// What it is connected to.
    pub tap: TapConfig,
    /// The guest's address; `None` for one that is made up.
    pub mac: Option<MacAddress>,
    /// Whether the host's kernel carries the packets.
    pub vhost: VhostConfig,
}

/// Whether the host's kernel carries packets, by vhost-net.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostConfig {
    /// Where it can.
    #[default]
    Auto,
    /// It must.
    On,
    /// It does not.
    Off,
}

/// A tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapConfig {
    /// The one of this name, with so many queues: 1 to [`PAIRS_MAX`].
    Named(TapName, u16),
    /// Descriptors that this process was started with, one for each queue, none of them twice.
    Given(Vec<RawFd>),
}

/// The name of a network interface: 1 to 15 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapName(String);

/// A station's MAC address: neither a group's nor zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl FromStr for NetConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut fields = Fields::of(
            text,
            "tap=NAME[,queues=N][,mac=MAC][,vhost=auto|on|off] or fd=N[:N...][,mac=MAC][,vhost=auto|on|off]",
        )?;
        let mac = fields.take("mac").map(str::parse).transpose()?;
        let vhost = fields.take("vhost").map(str::parse).transpose()?;
        let queues = fields.take("queues").map(number_of_queues).transpose()?;
        let tap = match (fields.take("tap"), fields.take("fd")) {
            (Some(name), None) => TapConfig::named(name, queues.unwrap_or(1))?,
            (None, Some(list)) => TapConfig::Given(descriptors(list)?),
            (Some(_), Some(_)) => {
                return Err(ParseError::new(
                    "a tap is told by its name or by its descriptors: write tap= or fd=, not both",
                ));
            }
            (None, None) => return Err(fields.missing("the tap")),
        };
        if let (TapConfig::Given(_), Some(_)) = (&tap, queues) {
            return Err(ParseError::new(
                "each descriptor is a queue: write fd=3:4 for two, without queues=",
            ));
        }
        fields.end()?;
        Ok(NetConfig {
            tap,
            mac,
            vhost: vhost.unwrap_or_default(),
        })
    }
}

impl FromStr for VhostConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "auto" => Ok(VhostConfig::Auto),
            "on" => Ok(VhostConfig::On),
            "off" => Ok(VhostConfig::Off),
            _ => Err(ParseError::new(format!(
                "vhost={text}: write vhost=auto, vhost=on or vhost=off"
            ))),
        }
    }
}

fn number_of_queues(text: &str) -> Result<u32, ParseError> {
    text.parse().map_err(|_| wrong_queues(&text))
}

fn wrong_queues(given: &dyn fmt::Display) -> ParseError {
    ParseError::new(format!(
        "queues={given}: a network device has 1 to {PAIRS_MAX} pairs of queues"
    ))
}

impl TapConfig {
    /// The tap called `name`, with so many queues.
    ///
    /// # Errors
    /// When that is no name of an interface, or there are too many queues or none.
    pub fn named(name: &str, queues: u32) -> Result<Self, ParseError> {
        let count = u16::try_from(queues).ok();
        let count = count.filter(|count| (1..=PAIRS_MAX).contains(count));
        let count = count.ok_or_else(|| wrong_queues(&queues))?;
        Ok(TapConfig::Named(name.parse()?, count))
    }
}

fn descriptors(list: &str) -> Result<Vec<RawFd>, ParseError> {
    let mut fds = Vec::new();
    for text in list.split(':') {
        let fd = descriptor(text)?;
        if fds.contains(&fd) {
            return Err(ParseError::new(format!("descriptor {fd} stands twice")));
        }
        fds.push(fd);
    }
    if fds.len() > PAIRS_MAX.into() {
        return Err(ParseError::new(format!(
            "a network device has at most {PAIRS_MAX} pairs of queues, and so descriptors"
        )));
    }
    Ok(fds)
}

impl TapName {
    /// IFNAMSIZ without the NUL.
    const MAX: usize = 15;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TapName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // As the kernel has it; a percent sign would stand for a number of its choice.
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
        let path = matches!(text, "." | "..");
        if (1..=Self::MAX).contains(&text.len()) && text.chars().all(allowed) && !path {
            return Ok(TapName(text.into()));
        }
        Err(ParseError::new(format!(
            "tap={text}: an interface's name has 1 to {} characters, none of them a space, '/', ':' or '%'",
            Self::MAX
        )))
    }
}

impl MacAddress {
    /// The bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next().filter(|part| part.len() == 2)?;
                let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
                *byte = digits
                    .then(|| u8::from_str_radix(part, 16).ok())
                    .flatten()?;
            }
            parts.next().is_none().then_some(bytes)
        };
        let bytes = parse().ok_or_else(|| {
            ParseError::new(format!(
                "mac={text}: write a MAC address as 02:00:00:12:34:56"
            ))
        })?;
        let [first, ..] = bytes;
        if first & 1 != 0 {
            return Err(ParseError::new(format!(
                "mac={text}: this is the address of a group (multicast): take one whose first byte is even, such as 02"
            )));
        }
        if bytes == [0; 6] {
            return Err(ParseError::new(format!(
                "mac={text}: this is no station's address"
            )));
        }
        Ok(MacAddress(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_has_a_name_or_descriptors() {
        let parse = |text: &str| text.parse::<NetConfig>().unwrap();
        let named = parse("tap=orlop0");
        assert_eq!(
            named.tap,
            TapConfig::Named(TapName("orlop0".into()), 1),
            "one queue"
        );
        assert_eq!((named.mac, named.vhost), (None, VhostConfig::Auto));
        let all = parse("queues=4,mac=02:00:00:12:34:Ab,tap=a.long-name_15@");
        assert_eq!(
            all.tap,
            TapConfig::Named(TapName("a.long-name_15@".into()), 4)
        );
        assert_eq!(all.mac.unwrap().bytes(), [2, 0, 0, 0x12, 0x34, 0xab]);
        assert_eq!(all.mac.unwrap().to_string(), "02:00:00:12:34:ab");
        assert_eq!(parse("tap=a,vhost=on").vhost, VhostConfig::On);
        assert_eq!(parse("vhost=off,fd=3").vhost, VhostConfig::Off);
        assert_eq!(parse("fd=3").tap, TapConfig::Given(vec![3]));
        assert_eq!(parse("fd=7:5").tap, TapConfig::Given(vec![7, 5]));
    }

    #[test]
    fn what_is_wrong_says_what_is_right() {
        let seventeen = (3..20).map(|fd| fd.to_string()).collect::<Vec<_>>();
        let seventeen = format!("fd={}", seventeen.join(":"));
        for (text, hint) in [
            ("", "the tap is missing"),
            ("mac=02:00:00:00:00:01", "the tap is missing"),
            ("tap", "the tap is missing"),
            ("tap=", "1 to 15 characters"),
            ("tap=sixteen-letters-", "1 to 15 characters"),
            ("tap=a b", "1 to 15 characters"),
            ("tap=a/b", "1 to 15 characters"),
            ("tap=tap%d", "1 to 15 characters"),
            ("tap=..", "1 to 15 characters"),
            ("tap=tä", "1 to 15 characters"),
            ("tap=a,fd=3", "not both"),
            ("tap=a,tap=b", "stands twice"),
            ("tap=a,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02", "twice"),
            ("tap=a,queues=0", "1 to 16"),
            ("tap=a,queues=17", "1 to 16"),
            ("tap=a,queues=x", "1 to 16"),
            ("tap=a,vhost=yes", "vhost=auto, vhost=on or vhost=off"),
            ("tap=a,vhost", "'vhost' means nothing here"),
            ("tap=a,speed=9", "'speed' means nothing here"),
            ("tap=a,mac=", "02:00:00:12:34:56"),
            ("tap=a,mac=02:00:00:00:00", "02:00:00:12:34:56"),
            ("tap=a,mac=02:00:00:00:00:01:02", "02:00:00:12:34:56"),
            ("tap=a,mac=02:00:00:00:00:+1", "02:00:00:12:34:56"),
            ("tap=a,mac=02:00:00:00:00:gg", "02:00:00:12:34:56"),
            ("tap=a,mac=01:00:5e:00:00:01", "multicast"),
            ("tap=a,mac=ff:ff:ff:ff:ff:ff", "multicast"),
            ("tap=a,mac=00:00:00:00:00:00", "no station"),
            ("fd=2", "from 3 on"),
            ("fd=-1", "from 3 on"),
            ("fd=3:", "from 3 on"),
            ("fd=99999999999", "from 3 on"),
            ("fd=3:4:3", "descriptor 3 stands twice"),
            ("fd=3,queues=1", "without queues="),
            (&seventeen, "at most 16"),
        ] {
            let error = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
