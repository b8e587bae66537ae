//! What the VMM and virtiofsd print: kept in a file of bounded size, with the last line at hand for an error message.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

use crate::logging;

/// A file begins anew when it has grown to this many bytes: a guest prints as much as it likes.
const FILE_LIMIT: u64 = 1 << 20;
/// The longest line that is kept for a message.
const LINE_LIMIT: usize = 1000;
/// What a guest's kernel says why it ends. What follows is where it was then.
const LAST_WORDS: &str = "Kernel panic";

/// A program's output.
#[derive(Debug)]
pub struct Output {
    reader: JoinHandle<()>,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    last: String,
    last_own: String,
    open: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.close();
            } else if self.open.len() < LINE_LIMIT {
                self.open.push(byte);
            }
        }
    }

    fn close(&mut self) {
        let line = crate::codes::one_line(&String::from_utf8_lossy(&self.open));
        self.open.clear();
        // A warning is no end.
        let own = line.strip_prefix("orlop: ");
        if let Some(own) = own.filter(|own| !own.starts_with("warn: ")) {
            self.last_own = own.to_owned();
        }
        if !line.is_empty() && !self.last.contains(LAST_WORDS) {
            self.last = line;
        }
    }
}

impl Output {
    /// Begins to copy what comes from `pipe` to the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn copy(pipe: OwnedFd, path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let mut pipe = Receiver::from_owned_fd(pipe)?;
        let lines = Arc::new(Mutex::new(Lines::default()));
        let kept = lines.clone();
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                let bytes = buffer.get(..count).unwrap_or_default();
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(bytes);
                // The file is on a tmpfs. If it is full, the log ends; the program goes on.
                let _ = logging::append(&mut file, bytes, FILE_LIMIT);
            }
            kept.lock().unwrap_or_else(PoisonError::into_inner).close();
        });
        Ok(Self { reader, lines })
    }

    /// Waits until the program has closed its output, at most a second.
    pub async fn finish(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.reader).await;
    }

    /// The last line that the program printed, or that of a kernel's panic.
    pub fn last_line(&self) -> Option<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        Some(lines.last.clone()).filter(|line| !line.is_empty())
    }

    /// The last line that begins with `orlop: ` and is no warning, without that: the error of the VMM.
    pub fn last_error(&self) -> Option<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        Some(lines.last_own.clone()).filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_follows_a_kernels_panic_is_not_its_last_word() {
        let mut lines = Lines::default();
        lines.take(b"[1.0] Kernel panic - not syncing: x\n[1.0] Call Trace:\n[1.0]  y+0x1/0x2\n");
        assert_eq!(lines.last, "[1.0] Kernel panic - not syncing: x");
    }

    #[tokio::test]
    async fn the_last_lines_are_at_hand_and_the_file_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut output = Output::copy(reader.into(), &path).unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = writer;
            writer.write_all(&vec![b'x'; 3 << 20]).unwrap();
            writer
                .write_all(
                    b"\norlop: no kernel at /x\norlop: warn: what of it\nsomething else\r\n\n",
                )
                .unwrap();
        });
        writing.await.unwrap();
        output.finish().await;
        assert_eq!(output.last_error().as_deref(), Some("no kernel at /x"));
        assert_eq!(output.last_line().as_deref(), Some("something else"));
        assert!(std::fs::metadata(&path).unwrap().len() <= FILE_LIMIT);
    }
}
