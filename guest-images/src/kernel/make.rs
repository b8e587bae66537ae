//! Runs the programs of a kernel's build: what they say goes to a log, and is counted; the last of it is told when one fails.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Error;

/// How many of its last lines a failed program is quoted with.
const LAST_LINES: usize = 12;

/// How often a compilation says how far it is.
const REPORT: Duration = Duration::from_secs(15);

/// Where the output of all programs goes.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Runs `command` to its end and hands each line that it says to `line`.
    pub(super) fn run(
        &mut self,
        mut command: Command,
        mut line: impl FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let shown = shown(&command);
        let cannot_run = |source| Error::Run {
            command: shown.clone(),
            source,
        };
        let (reader, writer) = io::pipe().map_err(cannot_run)?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(cannot_run)?)
            .stderr(writer);
        let mut child = Running(command.spawn().map_err(cannot_run)?);
        // It holds the pipe's writing end, and the output would never end.
        drop(command);
        writeln!(self.file, "$ {shown}").map_err(|source| self.cannot_write(source))?;
        let mut last = VecDeque::new();
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let count = reader.read_until(b'\n', &mut bytes).map_err(cannot_run)?;
            if count == 0 {
                break;
            }
            self.file
                .write_all(&bytes)
                .map_err(|source| self.cannot_write(source))?;
            let text = String::from_utf8_lossy(&bytes);
            line(text.trim_end())?;
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(text.trim_end().to_owned());
        }
        let status = child.0.wait().map_err(cannot_run)?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed {
            command: shown,
            status,
            said: Vec::from(last).join("\n"),
            log: self.path.clone(),
        })
    }

    fn cannot_write(&self, source: io::Error) -> Error {
        Error::Write {
            path: self.path.clone(),
            source,
        }
    }
}

/// A program that does not outlive our interest in it. (What it has started itself ends when it writes next.)
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless reading what it says has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// How far a compilation is.
pub(super) struct Count {
    files: u32,
    reported: Instant,
}

impl Count {
    pub(super) fn start(now: Instant) -> Self {
        Self {
            files: 0,
            reported: now,
        }
    }

    /// Takes a line of the kernel's build; now and then there is something to report.
    pub(super) fn line(&mut self, line: &str, now: Instant) -> Option<String> {
        let object = object(line)?;
        self.files += 1;
        if now.duration_since(self.reported) < REPORT {
            return None;
        }
        self.reported = now;
        let directory = object.rsplit_once('/').map_or(object, |(path, _)| path);
        Some(format!(
            "compiling: {} files so far, now in {directory}",
            self.files
        ))
    }

    pub(super) fn files(&self) -> u32 {
        self.files
    }
}

/// The file that a line such as `  CC      fs/ext4/inode.o` compiles.
fn object(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    let (tool, object) = (words.next()?, words.next()?);
    let compiles = matches!(tool, "CC" | "AS" | "HOSTCC");
    (compiles && words.next().is_none()).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn knows_the_lines_that_compile_something() {
        assert_eq!(object("  CC      fs/ext4/inode.o"), Some("fs/ext4/inode.o"));
        assert_eq!(
            object("  AS      arch/x86/entry/entry.o"),
            Some("arch/x86/entry/entry.o")
        );
        for other in [
            "  AR      fs/ext4/built-in.a",
            "  LD      vmlinux",
            "CC      fs/ext4/inode.o",
            "make[1]: Entering directory '/tmp'",
            "  CC",
            "  CC      something that nobody has seen",
            "",
        ] {
            assert_eq!(object(other), None, "{other}");
        }
    }

    #[test]
    fn reports_now_and_then() {
        let start = Instant::now();
        let mut count = Count::start(start);
        let line = "  CC      fs/ext4/inode.o";
        assert_eq!(count.line(line, start + REPORT / 2), None);
        let report = count.line(line, start + REPORT).unwrap();
        assert_eq!(report, "compiling: 2 files so far, now in fs/ext4");
        assert_eq!(count.line(line, start + REPORT * 3 / 2), None);
        assert_eq!(count.line("  LD      vmlinux", start + REPORT * 3), None);
        assert!(
            count
                .line("  CC      top.o", start + REPORT * 3)
                .unwrap()
                .ends_with("4 files so far, now in top.o")
        );
        assert_eq!(count.files(), 4);
    }

    #[test]
    fn logs_and_hands_on_what_a_program_says_on_either_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; printf three";
        Log::create(&path)
            .unwrap()
            .run(shell(script), |line| {
                lines.push(line.to_owned());
                Ok(())
            })
            .unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        let log = std::fs::read_to_string(&path).unwrap();
        assert_eq!(log, format!("$ sh -c {script}\none\ntwo\nthree"));
    }

    #[test]
    fn a_failure_names_the_command_its_last_words_and_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let script = "for i in $(seq 50); do echo line $i.; done; exit 7";
        let error = Log::create(&path)
            .unwrap()
            .run(shell(script), |_| Ok(()))
            .unwrap_err()
            .to_string();
        for part in [
            "`sh -c for i",
            "exit status: 7",
            "line 50.",
            path.to_str().unwrap(),
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("line 38."), "{error}");
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Log::create(&dir.path().join("log"))
            .unwrap()
            .run(Command::new("/nonexistent/make"), |_| Ok(()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot run `/nonexistent/make`"), "{error}");
    }

    #[test]
    fn a_program_ends_when_nobody_wants_to_hear_it() {
        let dir = tempfile::tempdir().unwrap();
        let stop = |_: &str| Err(Error::Report(io::Error::other("gone")));
        let mut log = Log::create(&dir.path().join("log")).unwrap();
        let error = log
            .run(shell("echo one; exec sleep 1000"), stop)
            .unwrap_err();
        assert!(matches!(error, Error::Report(_)));
    }
}
