//! What the guest writes, on its way to whoever reads it: through a bounded buffer to a thread of its own.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::audience::Audience;
use super::backlog::{Sender, backlog};

/// Bytes of output that may wait for the reader.
pub const BACKLOG: usize = 64 << 10;

/// Takes the guest's bytes without ever waiting.
#[derive(Clone, Debug)]
pub struct Output {
    bytes: Arc<Sender>,
    dropped: Dropped,
}

/// How many bytes of output nobody read in time.
#[derive(Clone, Debug, Default)]
pub struct Dropped(Arc<AtomicU64>);

impl Dropped {
    /// The number.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// So many more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Output {
    /// Takes as many of `data` as there is room for, and says how many.
    pub fn offer(&self, data: &[u8]) -> usize {
        self.bytes.send(data)
    }

    /// What was dropped of it.
    pub fn dropped(&self) -> &Dropped {
        &self.dropped
    }
}

/// What has no room is dropped.
impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.dropped.add(data.len() - self.offer(data));
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes a console's output. It ends when the console is gone, after the last byte.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Starts it: it writes to `sink`, and tells the audience.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        mut sink: impl Write + Send + 'static,
        audience: Arc<Audience>,
        dropped: Dropped,
    ) -> io::Result<(Output, Self)> {
        let (sender, receiver) = backlog(BACKLOG);
        let run = move || {
            let mut chunk = Vec::new();
            while receiver.receive(&mut chunk) {
                audience.say(&chunk);
                // A reader that has gone is no reason to end the VM.
                let _ = sink.write_all(&chunk).and_then(|()| sink.flush());
                chunk.clear();
            }
        };
        let thread = thread::Builder::new().name("console".into()).spawn(run)?;
        let bytes = Arc::new(sender);
        Ok((Output { bytes, dropped }, Writer(thread)))
    }

    /// Waits until all output is written. To be called when the console has been dropped.
    pub fn finish(self) {
        // The writer does not panic; if it did, there is nothing left to write.
        let _ = self.0.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_does_not_read_stops_nobody() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (mut output, _writer) =
            Writer::start(writer, Arc::default(), Dropped::default()).unwrap();
        for _ in 0..4 {
            output.write_all(&[b'x'; BACKLOG]).unwrap();
        }
        assert!(
            output.dropped().count() > 0,
            "the pipe and the backlog together hold less"
        );
        drop(reader);
    }
}
