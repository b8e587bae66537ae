//! The pipe on which a process that is being made says what goes wrong, until it executes the user's program.
//!
//! libcontainer's errors lose their causes on the way from the process to its parent, but it logs them where they happen. So its log
//! goes into the pipe too, and the first line of it says more than the error itself. The kinds of line are told apart by their
//! first byte: what the log says need not be fatal, and a shell's user is told of a program that is missing otherwise than of another.

use std::fmt::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use orlop_proto::agent::v1::not_executed::Reason;
use tracing::field::{Field, Visit};
use tracing::span;

use crate::error::Error;

/// Lines that say why the user's program was not executed.
const FATAL: [(char, Reason); 3] = [
    ('E', Reason::Unspecified),
    ('M', Reason::Missing),
    ('R', Reason::Refused),
];
/// A line of libcontainer's log.
const LOGGED: char = 'L';

/// Lines are cut here, so that each is one write that is not mixed with another's.
const MAX_LINE: usize = 2048;

/// The writing side.
#[derive(Clone)]
pub struct Report(Arc<OwnedFd>);

impl Report {
    /// Writes to `pipe`, never blocking.
    pub fn new(pipe: OwnedFd) -> Self {
        let _ = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        Self(Arc::new(pipe))
    }

    /// Says why the user's program cannot be executed.
    pub fn fatal(&self, fatal: &Fatal) {
        let kind = FATAL.iter().find(|(_, reason)| *reason == fatal.reason);
        self.write(kind.map_or('E', |(kind, _)| *kind), &fatal.why);
    }

    /// Sends libcontainer's errors here as well.
    pub fn collect_errors(&self) {
        let collector = Collector {
            report: self.clone(),
            spans: AtomicU64::new(1),
        };
        let _ = tracing::subscriber::set_global_default(collector);
    }

    fn write(&self, kind: char, text: &str) {
        let mut line = format!("{kind}{}", text.replace('\n', " "));
        line.truncate(line.floor_char_boundary(MAX_LINE));
        line.push('\n');
        let _ = nix::unistd::write(&*self.0, line.as_bytes());
    }
}

/// Why the user's program is not executed.
#[derive(Debug, PartialEq, Eq)]
pub struct Fatal {
    /// What it is that a shell would tell by its exit status.
    pub reason: Reason,
    /// One line for people.
    pub why: String,
}

impl From<String> for Fatal {
    /// What has nothing to do with the program.
    fn from(why: String) -> Self {
        Self {
            reason: Reason::Unspecified,
            why,
        }
    }
}

impl From<Fatal> for Error {
    fn from(Fatal { reason, why }: Fatal) -> Self {
        match reason {
            Reason::Unspecified => Error::Runtime(why),
            reason => Error::NotExecuted { reason, why },
        }
    }
}

/// What has been read of a report.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Why the user's program was not executed.
    pub fatal: Option<Fatal>,
    /// The first error in libcontainer's log, where it happened.
    pub logged: Option<String>,
}

impl Reported {
    /// Sorts the lines.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let fatal = |line: &str| {
            FATAL.iter().find_map(|(kind, reason)| {
                line.strip_prefix(*kind).map(|why| Fatal {
                    reason: *reason,
                    why: why.to_owned(),
                })
            })
        };
        let logged = |line: &str| line.strip_prefix(LOGGED).map(str::to_owned);
        Self {
            fatal: text.lines().find_map(fatal),
            logged: text.lines().find_map(logged),
        }
    }
}

/// Takes libcontainer's log.
struct Collector {
    report: Report,
    spans: AtomicU64,
}

impl tracing::Subscriber for Collector {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == tracing::Level::ERROR
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.report
            .write(LOGGED, &format!("{}{}", line.message, line.fields));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        // Zero is not an id.
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = readable(&format!("{value:?}"));
        let _ = match field.name() {
            "message" => write!(self.message, "{text}"),
            "err" | "e" | "error" | "ret" => write!(self.fields, ": {text}"),
            name => write!(self.fields, ", {name} {text}"),
        };
    }
}

/// Makes the debug form of the system's errors one that people read: `Os { code: 2, kind: NotFound, message: "No such file or
/// directory" }` becomes its message, `ENOENT` too.
fn readable(debug: &str) -> String {
    if let Some((_, rest)) = debug.split_once("message: \"")
        && let Some((message, _)) = rest.split_once('"')
    {
        return message.to_lowercase();
    }
    let inner = debug.trim_start_matches("Nix(").trim_end_matches(')');
    let known = (1..=133)
        .map(nix::errno::Errno::from_raw)
        .find(|errno| format!("{errno:?}") == inner);
    match known {
        Some(errno) => errno.desc().to_lowercase(),
        None => debug.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn lines_are_sorted_by_kind() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let report = Report::new(writer.into());
        report.write(LOGGED, "deep\ndown");
        report.write(LOGGED, "further up");
        report.fatal(&Fatal {
            reason: Reason::Missing,
            why: format!("exec: {}", "ä".repeat(5000)),
        });
        report.fatal(&Fatal::from("later".to_owned()));
        drop(report);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        let reported = Reported::parse(&bytes);
        assert_eq!(reported.logged.as_deref(), Some("deep down"));
        let fatal = reported.fatal.unwrap();
        assert!(fatal.why.starts_with("exec: ää") && fatal.why.len() < MAX_LINE);
        assert_eq!(fatal.reason, Reason::Missing);
        assert_eq!(Reported::parse(b""), Reported::default());
    }

    #[test]
    fn a_report_never_blocks() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let report = Report::new(writer.into());
        for _ in 0..1000 {
            report.fatal(&Fatal::from("x".repeat(1000)));
        }
    }

    #[test]
    fn errors_are_readable() {
        assert_eq!(readable("ENOENT"), "no such file or directory");
        assert_eq!(readable("Nix(EPERM)"), "operation not permitted");
        assert_eq!(
            readable("Os { code: 13, kind: PermissionDenied, message: \"Permission denied\" }"),
            "permission denied"
        );
        assert_eq!(readable("\"/x\""), "\"/x\"");
    }
}
