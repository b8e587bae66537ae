//! Copying a stream.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{Notify, watch};

use crate::logging::phase;

/// Bytes that are moved at once: what a FIFO holds.
const CHUNK: usize = 64 << 10;

/// Whether output moves.
#[derive(Debug, Default)]
pub struct Progress {
    writing: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    ended: Notify,
}

impl Progress {
    /// The number of writes done, if one is waiting now.
    pub fn stalled_at(&self) -> Option<u64> {
        let writing = self.writing.load(Ordering::Acquire);
        writing.then(|| self.written.load(Ordering::Acquire))
    }
}

impl Progress {
    /// The number of reads done.
    pub fn reads(&self) -> u64 {
        self.read.load(Ordering::Acquire)
    }

    /// Waits until an output ends; the end of one that has ended since the last call counts.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }
}

/// Copies a process's output until it ends. What comes once `discard` says so, or the sink has failed, is dropped, so
/// that the process is not held up.
pub async fn copy_out<R, W>(
    mut stream: R,
    mut sink: W,
    mut discard: watch::Receiver<bool>,
    progress: Arc<Progress>,
    process: String,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    let mut first = true;
    let mut discarding = false;
    loop {
        let count = match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                log::debug!("output of {process} ends: {error}");
                break;
            }
        };
        progress.read.fetch_add(1, Ordering::AcqRel);
        if std::mem::take(&mut first) {
            phase("first-output", &process);
        }
        if discarding {
            continue;
        }
        progress.writing.store(true, Ordering::Release);
        discarding = tokio::select! {
            biased;
            written = sink.write_all(buffer.get(..count).unwrap_or_default()) => match written {
                Ok(()) => false,
                Err(error) => {
                    log::warn!("output of {process} is lost: {error}");
                    true
                }
            },
            // Nobody can say it any more once the sender has gone: then the reader is waited for.
            Ok(_) = discard.wait_for(|&discard| discard) => true,
        };
        progress.written.fetch_add(1, Ordering::AcqRel);
        progress.writing.store(false, Ordering::Release);
    }
    // A regular file is written behind the scenes; a FIFO has nothing to flush.
    let _ = sink.flush().await;
    drop(sink);
    progress.ended.notify_one();
}

/// Copies input to a process until the input ends, or `close` says so and all that was written before has been copied;
/// then tells the process that there is no more.
pub async fn copy_in(source: Receiver, mut stream: UnixStream, close: watch::Receiver<bool>) {
    match copy_until_end(&source, &mut stream, close).await {
        Ok(()) => {
            drop(source);
            let _ = stream.shutdown().await;
            // The connection stays until the guest closes it too: to close now could cut off what is on its way.
            let mut nothing = [0; 64];
            while let Ok(1..) = stream.read(&mut nothing).await {}
        }
        // The process has closed its input or has gone.
        Err(error) => log::debug!("input ends: {error}"),
    }
}

async fn copy_until_end(
    source: &Receiver,
    stream: &mut UnixStream,
    mut close: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let closing = tokio::select! {
            biased;
            // Readiness comes first with data or with the last writer's close, not while no writer has come yet.
            ready = source.readable() => {
                ready?;
                false
            }
            Ok(_) = close.wait_for(|&close| close) => true,
        };
        let read = if closing {
            // What has been written is in the FIFO, whether or not its readiness has been seen here.
            nix::unistd::read(source, &mut buffer).map_err(io::Error::from)
        } else {
            source.try_read(&mut buffer)
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(count) => {
                stream
                    .write_all(buffer.get(..count).unwrap_or_default())
                    .await?
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && closing => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::fifo;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    const LARGE: usize = 10 << 20;

    fn make_fifo(directory: &Path) -> PathBuf {
        let path = directory.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    fn pattern() -> Vec<u8> {
        (0..LARGE)
            .map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8)
            .collect()
    }

    #[tokio::test]
    async fn ten_megabytes_out_arrive_and_the_reader_sees_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = make_fifo(directory.path());
        let reader = tokio::task::spawn_blocking({
            let path = path.clone();
            move || std::fs::read(path).unwrap()
        });
        let sink = fifo::open_sink(path.to_str().unwrap()).await.unwrap();
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (_sender, discard) = watch::channel(false);
        let progress = Arc::new(Progress::default());
        let pump = tokio::spawn(copy_out(host, sink, discard, progress.clone(), "c".into()));
        guest.write_all(&pattern()).await.unwrap();
        drop(guest);
        pump.await.unwrap();
        assert!(reader.await.unwrap() == pattern());
        assert_eq!(progress.stalled_at(), None);
    }

    #[tokio::test]
    async fn output_that_nobody_reads_waits_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = make_fifo(directory.path());
        let sink = fifo::open_sink(path.to_str().unwrap()).await.unwrap();
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (sender, discard) = watch::channel(false);
        let progress = Arc::new(Progress::default());
        let pump = tokio::spawn(copy_out(host, sink, discard, progress.clone(), "c".into()));
        let writer = tokio::spawn(async move { guest.write_all(&vec![b'x'; LARGE]).await });
        let mut seen = None;
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = progress.stalled_at();
            if now.is_some() && now == seen {
                break;
            }
            seen = now;
        }
        assert!(seen.is_some(), "the write waits for a reader");
        assert!(!writer.is_finished());
        sender.send_replace(true);
        writer.await.unwrap().unwrap();
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn ten_megabytes_in_arrive_and_the_writers_close_is_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = make_fifo(directory.path());
        let source = fifo::open_source(path.to_str().unwrap(), false).unwrap();
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (_sender, close) = watch::channel(false);
        let pump = tokio::spawn(copy_in(source, host, close));
        // Nobody has opened the FIFO for writing yet: that is not the end.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let writer = tokio::task::spawn_blocking(move || std::fs::write(path, pattern()).unwrap());
        let mut received = Vec::new();
        guest.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert!(received == pattern());
        assert!(
            !pump.is_finished(),
            "the connection stays until the guest closes"
        );
        drop(guest);
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn a_writer_of_a_started_process_may_go_and_another_one_come() {
        let directory = tempfile::tempdir().unwrap();
        let path = make_fifo(directory.path());
        let uri = path.to_str().unwrap();
        let source = fifo::open_source(uri, false).unwrap();
        let hold = fifo::Hold::of(&source, uri, false).unwrap().unwrap();
        let open = || std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let mut writer = open();
        let held = hold.take().expect("its writer is there");
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (sender, close) = watch::channel(false);
        let _pump = tokio::spawn(copy_in(source, host, close));
        let mut received = vec![0; 8];
        for _ in 0..2 {
            std::io::Write::write_all(&mut writer, b"one line").unwrap();
            drop(writer);
            guest.read_exact(&mut received).await.unwrap();
            assert_eq!(received, b"one line");
            writer = open();
        }
        drop(writer);
        let end = tokio::time::timeout(Duration::from_millis(50), guest.read(&mut received));
        assert!(end.await.is_err(), "its input has not ended");
        drop(held);
        sender.send_replace(true);
        assert_eq!(guest.read(&mut received).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn input_that_has_ended_before_the_start_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = make_fifo(directory.path());
        let uri = path.to_str().unwrap();
        let source = fifo::open_source(uri, false).unwrap();
        let hold = fifo::Hold::of(&source, uri, false).unwrap().unwrap();
        drop(std::fs::OpenOptions::new().write(true).open(&path).unwrap());
        assert!(hold.take().is_none());
        let terminal = fifo::open_source(uri, true).unwrap();
        assert!(fifo::Hold::of(&terminal, uri, true).unwrap().is_none());
    }

    #[tokio::test]
    async fn closing_comes_behind_what_was_written() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let path = make_fifo(directory.path());
        for terminal in [false, true] {
            let source = fifo::open_source(path.to_str().unwrap(), terminal).unwrap();
            let mut writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all(&[b'x'; 60_000]).unwrap();
            let (host, mut guest) = UnixStream::pair().unwrap();
            let (sender, close) = watch::channel(false);
            sender.send_replace(true);
            let _pump = tokio::spawn(copy_in(source, host, close));
            let mut received = Vec::new();
            guest.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.len(), 60_000);
        }
    }

    #[tokio::test]
    async fn what_is_no_fifo_is_refused_and_a_file_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let uri = format!("file://{}", path.display());
        let sink = fifo::open_sink(&uri).await.unwrap();
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (_sender, discard) = watch::channel(false);
        let pump = tokio::spawn(copy_out(host, sink, discard, Arc::default(), "c".into()));
        guest.write_all(b"to a file").await.unwrap();
        drop(guest);
        pump.await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "to a file");
        assert!(fifo::open_sink(path.to_str().unwrap()).await.is_err());
        assert!(fifo::open_source("/nonexistent", false).is_err());
        let error = fifo::open_sink("binary:///bin/logger").await.unwrap_err();
        assert!(error.to_string().contains("not supported"), "{error}");
    }
}
