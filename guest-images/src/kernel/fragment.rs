//! A fragment of a kernel's configuration, and whether a configuration has all of it.
//!
//! Kconfig never complains: an option that does not exist, or whose needs are not met, is silently left out. So the configuration that comes out
//! is compared with what went in. An option that must stay out is written as Kconfig writes it, `# CONFIG_X is not set`, and is compared too.

use std::collections::{HashMap, HashSet};
use std::fmt;

/// Why a fragment is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A line says nothing that Kconfig would take.
    #[error(
        "line {line}, `{text}`, is neither `CONFIG_X=value`, `# CONFIG_X is not set` nor a comment"
    )]
    Malformed {
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// Two lines are about the same option, and one of them would go unheard.
    #[error("line {line} is about {option}, as an earlier line is")]
    Twice {
        /// The line's number, from 1.
        line: usize,
        /// The option.
        option: String,
    },
}

/// What a configuration is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment(Vec<Setting>);

/// An option and its value; none is an option that is not set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    name: String,
    value: Option<String>,
}

/// An option of a fragment that a configuration has otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    name: String,
    wanted: Option<String>,
    found: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            wanted,
            found,
        } = self;
        match wanted {
            Some(value) => write!(f, "{name}={value}")?,
            None => write!(f, "{name} not set")?,
        }
        match found {
            Some(value) => write!(f, " (it is {value})"),
            None => write!(f, " (it is not set)"),
        }
    }
}

impl Fragment {
    /// Reads a fragment.
    ///
    /// # Errors
    /// When a line is malformed, or an option stands there twice.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut seen = HashSet::new();
        let mut options = Vec::new();
        for (number, text) in (1..).zip(text.lines()) {
            let Some(option) = parse_line(text).map_err(|()| Error::Malformed {
                line: number,
                text: text.to_owned(),
            })?
            else {
                continue;
            };
            if !seen.insert(option.name.clone()) {
                return Err(Error::Twice {
                    line: number,
                    option: option.name,
                });
            }
            options.push(option);
        }
        Ok(Self(options))
    }

    /// The options that the configuration file `config` has otherwise.
    #[must_use]
    pub fn lost(&self, config: &str) -> Vec<Lost> {
        let config: HashMap<&str, &str> = config
            .lines()
            .filter(|line| line.starts_with("CONFIG_"))
            .filter_map(|line| line.split_once('='))
            .collect();
        let mut lost = Vec::new();
        for Setting { name, value } in &self.0 {
            let found = config.get(name.as_str()).copied();
            if found != value.as_deref() {
                lost.push(Lost {
                    name: name.clone(),
                    wanted: value.clone(),
                    found: found.map(str::to_owned),
                });
            }
        }
        lost
    }
}

/// The option that a line is about, if it is about one.
fn parse_line(line: &str) -> Result<Option<Setting>, ()> {
    let option = |name: &str, value: Option<&str>| {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match name.strip_prefix("CONFIG_") {
            Some(rest) if !rest.is_empty() && rest.chars().all(letter) => Ok(Some(Setting {
                name: name.to_owned(),
                value: value.map(str::to_owned),
            })),
            _ => Err(()),
        }
    };
    match line.strip_prefix('#').map(str::trim_start) {
        // A comment that begins like an option is a slip of the pen.
        Some(comment) if comment.starts_with("CONFIG_") => {
            match comment.strip_suffix(" is not set") {
                Some(name) if line.starts_with("# CONFIG_") => option(name, None),
                _ => Err(()),
            }
        }
        Some(_) => Ok(None),
        None if line.trim().is_empty() => Ok(None),
        None => match line.split_once('=') {
            // Kconfig writes `is not set` for n, so this one would never be found again.
            Some((_, "" | "n")) | None => Err(()),
            Some((name, value)) => option(name, Some(value)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = "\
# Prose, and what CONFIG_A is for.
CONFIG_A=y

CONFIG_NAME=\"-orlop=1\"
CONFIG_CPUS=256
# CONFIG_MODULES is not set
";

    fn lost(config: &str) -> Vec<String> {
        let fragment = Fragment::parse(FRAGMENT).unwrap();
        fragment.lost(config).iter().map(Lost::to_string).collect()
    }

    #[test]
    fn a_configuration_that_has_it_all_loses_nothing() {
        let config =
            "#\n# Linux\n#\nCONFIG_A=y\nCONFIG_NAME=\"-orlop=1\"\nCONFIG_CPUS=256\nCONFIG_MORE=y\n";
        assert!(lost(config).is_empty());
        assert!(lost(&format!("{config}# CONFIG_MODULES is not set\n")).is_empty());
    }

    #[test]
    fn each_option_that_is_otherwise_is_named() {
        let config = "# CONFIG_A is not set\nCONFIG_CPUS=64\nCONFIG_MODULES=y\n";
        assert_eq!(
            lost(config),
            [
                "CONFIG_A=y (it is not set)",
                "CONFIG_NAME=\"-orlop=1\" (it is not set)",
                "CONFIG_CPUS=256 (it is 64)",
                "CONFIG_MODULES not set (it is y)"
            ]
        );
    }

    #[test]
    fn a_name_is_compared_whole() {
        assert_eq!(lost("CONFIG_AA=y\nCONFIG_MODULES_X=y\n").len(), 3);
    }

    #[test]
    fn what_kconfig_would_overlook_is_refused() {
        for line in [
            "CONFIG_A",
            "CONFIG_A =y",
            " CONFIG_A=y",
            "CONFIG_A=",
            "CONFIG_A=n",
            "CONFIG_=y",
            "A=y",
            "#CONFIG_A is not set",
            "# CONFIG_A is not set.",
            "# CONFIG_A=y",
        ] {
            let error = Fragment::parse(&format!("\n{line}\n")).unwrap_err();
            let expected = Error::Malformed {
                line: 2,
                text: line.to_owned(),
            };
            assert_eq!(error, expected);
        }
        let error = Fragment::parse("CONFIG_A=y\n# CONFIG_A is not set\n").unwrap_err();
        assert!(
            error.to_string().contains("line 2 is about CONFIG_A"),
            "{error}"
        );
    }

    #[test]
    fn our_own_is_well_formed() {
        let fragment = Fragment::parse(crate::kernel::FRAGMENT).unwrap();
        assert!(fragment.0.len() > 100);
    }
}
