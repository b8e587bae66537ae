//! Log lines, to places that must never hold the shim up.
//!
//! containerd reads the FIFO `log` of the bundle and prints what comes; a copy goes to `shim.log` in the pod's state
//! directory. The FIFO is opened for reading and writing, so that opening and writing succeed whether containerd is there
//! or not, and it does not block: a line that does not fit is lost.
//!
//! A line begins with the time in seconds since the epoch. Phases of a pod's life (`phase agent-ready`) are logged by
//! [`phase`], for whoever wants to know where the time goes.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `shim.log` begins anew when it has grown to this many bytes.
const LOG_FILE_LIMIT: u64 = 1 << 20;

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    id: String,
    sinks: Mutex<Sinks>,
}

#[derive(Default)]
struct Sinks {
    fifo: Option<File>,
    file: Option<File>,
}

/// Sends log lines of the process to the FIFO at `fifo`, each with `id`. The first call counts.
pub fn init(id: &str, fifo: Option<File>, debug: bool) {
    let logger = Logger {
        id: id.to_owned(),
        sinks: Mutex::new(Sinks { fifo, file: None }),
    };
    if LOGGER.set(logger).is_ok() {
        if let Some(logger) = LOGGER.get() {
            // Fails only where a logger is set already, which the line above excludes.
            let _ = log::set_logger(logger);
        }
        log::set_max_level(if debug {
            log::LevelFilter::Debug
        } else {
            log::LevelFilter::Info
        });
    }
}

/// Sends a copy of the lines to a new file at `path` as well.
pub fn also_to(path: &Path) {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    if let (Some(logger), Ok(file)) = (LOGGER.get(), file) {
        let mut sinks = logger.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.file = Some(file);
    }
}

/// Opens the log FIFO at `path`, if there is one.
pub fn open_fifo(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    file.metadata().ok()?.file_type().is_fifo().then_some(file)
}

/// Logs that a pod or container has come to the phase `name`.
pub fn phase(name: &str, container: &str) {
    log::info!("phase {name} container={container}");
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let line = format!(
            "{}.{:06} {} orlop {} {}\n",
            now.as_secs(),
            now.subsec_micros(),
            record.level(),
            self.id,
            crate::codes::one_line(&record.args().to_string()),
        );
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere to say that a line cannot be logged.
        if let Some(fifo) = &mut sinks.fifo {
            let _ = fifo.write(line.as_bytes());
        }
        if let Some(file) = &mut sinks.file {
            let _ = append(file, line.as_bytes(), LOG_FILE_LIMIT);
        }
    }

    fn flush(&self) {}
}

/// Appends to a log file; one that would grow over `limit` bytes begins anew.
///
/// # Errors
/// What the file says.
pub fn append(file: &mut File, bytes: &[u8], limit: u64) -> std::io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    if length.saturating_add(bytes.len() as u64) > limit {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
    }
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_that_nobody_reads_blocks_neither_open_nor_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut fifo = open_fifo(&path).unwrap();
        let line = [b'x'; 4096];
        let written = (0..100).take_while(|_| fifo.write(&line).is_ok()).count();
        assert!(written < 100, "a full FIFO must refuse");
        assert!(open_fifo(&directory.path().join("absent")).is_none());
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(open_fifo(&directory.path().join("file")).is_none());
    }

    #[test]
    fn a_log_file_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        for _ in 0..100 {
            append(&mut file, &[b'x'; 30], 100).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 100);
        }
    }
}
