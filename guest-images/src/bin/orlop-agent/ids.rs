//! The names of containers and processes. They become names of directories and control groups, so they are checked at the door.

use std::fmt;

use crate::error::{Error, Result};

/// A valid id: 1 to 76 characters of `[A-Za-z0-9_.-]`, beginning with an alphanumeric one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(String);

const MAX_LENGTH: usize = 76;

impl Id {
    /// Checks an id.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when it is empty, too long, or has a character that is not allowed.
    pub fn parse(text: &str) -> Result<Self> {
        let valid = text.len() <= MAX_LENGTH
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c));
        if valid {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(MAX_LENGTH).collect();
        Err(Error::Invalid(format!(
            "{shown:?} is not a valid id: 1 to {MAX_LENGTH} characters of [A-Za-z0-9_.-] are, the first one alphanumeric"
        )))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a process: a container, and in it the first process (`None`) or a further one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The container.
    pub container: Id,
    /// The further process.
    pub exec: Option<Id>,
}

impl ProcessId {
    /// Checks the pair as it comes in requests, where an empty exec id means the container's own process.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when either is not a valid id.
    pub fn parse(container: &str, exec: &str) -> Result<Self> {
        Ok(Self {
            container: Id::parse(container)?,
            exec: (!exec.is_empty()).then(|| Id::parse(exec)).transpose()?,
        })
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            None => write!(f, "container {}", self.container),
            Some(exec) => write!(f, "process {exec} of container {}", self.container),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_containerd_uses() {
        for id in ["a", "0", &"f".repeat(64), "web-1_2.3", &"x".repeat(76)] {
            assert_eq!(Id::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn refuses_what_would_not_be_one_file_name() {
        for id in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "a b",
            "a\0b",
            "ä",
            "a\n",
            &"x".repeat(77),
            &"/".repeat(100_000),
        ] {
            let error = Id::parse(id).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            assert!(error.to_string().len() < 400);
        }
    }

    #[test]
    fn an_empty_exec_is_the_container_itself() {
        assert_eq!(ProcessId::parse("a", "").unwrap().exec, None);
        assert!(ProcessId::parse("", "a").is_err());
        assert!(ProcessId::parse("a", "/").is_err());
        assert_eq!(
            ProcessId::parse("a", "b").unwrap().to_string(),
            "process b of container a"
        );
    }
}
