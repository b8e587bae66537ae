//! Moves the bytes of one stream between a process and the host.
//!
//! When is a process's output *taken*, so that its exit may be reported? When, after the exit, its pipe has been found empty and
//! all that was in it has been written to the host's connection: everything that the process itself wrote was in the pipe when it
//! exited. What children that it left behind write later still goes to the connection, but no exit waits for them, or a
//! daemon that keeps its stdout would hold up the exit for as long as it lives.
//!
//! Output whose connection has broken is thrown away, so that the process can go on. Output whose connection never came is kept
//! in the pipe until [`GRACE`] after the exit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::Arrival;
use super::fd::Fd;
use crate::listen::Connection;
use crate::reaper::{ExitWatch, exited};

/// How long the output of a process that has exited waits for somebody to take it.
pub const GRACE: Duration = Duration::from_secs(10);

/// Bytes moved at a time; a pipe holds as many.
const CHUNK: usize = 64 << 10;

/// Tells when an output has been taken: when it says so, or its sender is gone.
pub type Taken = watch::Receiver<bool>;

/// Moves a process's output to the host until the last writer has closed it. `taken` is told when the exit may be reported.
pub async fn output(
    source: Arc<Fd>,
    arrival: Arrival,
    mut exit: ExitWatch,
    taken: watch::Sender<bool>,
) {
    let mut connection = tokio::select! {
        connection = arrival => connection.ok(),
        () = nobody_came(&source, exit.clone(), &taken) => None,
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let has_exited = exit.borrow().is_some();
        let mut result = Err(io::ErrorKind::WouldBlock.into());
        if has_exited && !*taken.borrow() {
            // The order matters: the pipe is looked at after the exit is known.
            result = source.read_now(&mut buffer);
            if is(&result, io::ErrorKind::WouldBlock) {
                taken.send_replace(true);
            }
        }
        if is(&result, io::ErrorKind::WouldBlock) {
            result = tokio::select! {
                result = source.read(&mut buffer) => result,
                _ = exited(&mut exit), if !has_exited => continue,
            };
        }
        match result {
            Ok(0) => break,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if let Some(open) = &mut connection
                    && let Err(error) = open.write_all(bytes).await
                {
                    log::debug!("a stream of output broke: {error}");
                    connection = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal's end: the last process that had it has closed it (EIO).
            Err(_) => break,
        }
    }
    if let Some(mut open) = connection {
        let _ = open.shutdown().await;
    }
    taken.send_replace(true);
}

/// Moves the host's input to a process, until the host ends it or the process exits. The pipe closes with `sink`.
pub async fn input(sink: Arc<Fd>, arrival: Arrival, mut exit: ExitWatch) {
    let copy = async {
        let Ok(connection) = arrival.await else {
            return;
        };
        if let Err(error) = copy_input(connection, &sink).await {
            log::debug!("a stream of input broke: {error}");
        }
    };
    tokio::select! {
        () = copy => {}
        _ = exited(&mut exit) => {}
    }
}

async fn copy_input(mut connection: Connection, sink: &Fd) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = connection.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        sink.write_all(buffer.get(..length).unwrap_or_default())
            .await?;
    }
}

/// Returns when the process has exited and its output has waited long enough. Where there is none, nothing keeps the exit.
async fn nobody_came(source: &Fd, mut exit: ExitWatch, taken: &watch::Sender<bool>) {
    exited(&mut exit).await;
    if !source.has_data() {
        taken.send_replace(true);
    }
    tokio::time::sleep(GRACE).await;
}

fn is(result: &io::Result<usize>, kind: io::ErrorKind) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaper::Exit;
    use std::io::Write as _;
    use tokio::net::UnixStream;
    use tokio::sync::oneshot;

    const EXIT: Option<Exit> = Some(Exit {
        status: 0,
        at_ns: 1,
    });

    struct Output {
        writer: std::io::PipeWriter,
        arrival: Option<oneshot::Sender<Connection>>,
        exit: watch::Sender<Option<Exit>>,
        taken: Taken,
        task: tokio::task::JoinHandle<()>,
    }

    fn start() -> Output {
        let (reader, writer) = std::io::pipe().unwrap();
        let (arrival, receiver) = oneshot::channel();
        let (exit, exit_watch) = watch::channel(None);
        let (taken_sender, taken) = watch::channel(false);
        let source = Arc::new(Fd::new(reader.into()).unwrap());
        let task = tokio::spawn(output(source, receiver, exit_watch, taken_sender));
        Output {
            writer,
            arrival: Some(arrival),
            exit,
            taken,
            task,
        }
    }

    impl Output {
        fn connect(&mut self) -> UnixStream {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let sender = self.arrival.take().unwrap();
            assert!(sender.send(Connection::Unix(theirs)).is_ok());
            ours
        }
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    #[tokio::test]
    async fn output_is_taken_when_all_of_it_is_with_the_host() {
        let mut out = start();
        out.writer.write_all(b"hello").unwrap();
        out.exit.send_replace(EXIT);
        settle().await;
        assert!(!*out.taken.borrow(), "nobody has taken it yet");
        let mut host = out.connect();
        out.taken.wait_for(|taken| *taken).await.unwrap();
        drop(out.writer);
        let mut got = String::new();
        host.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        out.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_pipe_does_not_hold_up_the_exit() {
        let mut out = start();
        let mut host = out.connect();
        let mut child = out.writer.try_clone().unwrap();
        out.writer.write_all(b"parent ").unwrap();
        out.exit.send_replace(EXIT);
        drop(out.writer);
        out.taken.wait_for(|taken| *taken).await.unwrap();
        child.write_all(b"child").unwrap();
        drop(child);
        let mut got = String::new();
        host.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "parent child");
    }

    #[tokio::test]
    async fn a_slow_host_makes_the_process_wait_and_the_exit_too() {
        let mut out = start();
        let host = out.connect();
        let sent = 10 << 20;
        let writer = std::thread::spawn({
            let mut writer = out.writer.try_clone().unwrap();
            move || writer.write_all(&vec![7; sent])
        });
        settle().await;
        assert!(!writer.is_finished());
        drop(out.writer);
        let reader = tokio::spawn(async move {
            let mut host = host;
            let mut got = Vec::new();
            host.read_to_end(&mut got).await.map(|_| got)
        });
        let got = reader.await.unwrap().unwrap();
        assert!(got == vec![7; sent]);
        writer.join().unwrap().unwrap();
        out.exit.send_replace(EXIT);
        out.task.await.unwrap();
        assert!(*out.taken.borrow());
    }

    #[tokio::test]
    async fn output_without_a_host_is_thrown_away() {
        let mut out = start();
        drop(out.connect());
        settle().await;
        let writer = out.writer.try_clone().unwrap();
        drop(out.writer);
        tokio::task::spawn_blocking(move || { writer }.write_all(&vec![0; 1 << 20]).unwrap())
            .await
            .unwrap();
        out.task.await.unwrap();
        assert!(*out.taken.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_waits_for_the_host_only_so_long() {
        let mut out = start();
        out.writer.write_all(b"lost").unwrap();
        out.exit.send_replace(EXIT);
        let begun = tokio::time::Instant::now();
        out.taken.wait_for(|taken| *taken).await.unwrap();
        assert!(begun.elapsed() >= GRACE);
        assert!(begun.elapsed() < 2 * GRACE);
    }

    #[tokio::test]
    async fn an_exit_without_output_waits_for_nobody() {
        let mut out = start();
        out.exit.send_replace(EXIT);
        out.taken.wait_for(|taken| *taken).await.unwrap();
        // A host that comes late learns that there is nothing.
        let mut host = out.connect();
        drop(out.writer);
        assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn input_ends_where_the_host_ends_it() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (arrival, receiver) = oneshot::channel();
        let (_exit, exit_watch) = watch::channel(None);
        let sink = Arc::new(Fd::new(writer.into()).unwrap());
        let task = tokio::spawn(input(sink, receiver, exit_watch));
        let (mut host, theirs) = UnixStream::pair().unwrap();
        assert!(arrival.send(Connection::Unix(theirs)).is_ok());
        let read = tokio::task::spawn_blocking(move || {
            let mut got = Vec::new();
            std::io::Read::read_to_end(&mut { reader }, &mut got).map(|_| got)
        });
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        host.write_all(&sent).await.unwrap();
        host.shutdown().await.unwrap();
        assert!(read.await.unwrap().unwrap() == sent);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn input_ends_with_the_process() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let (arrival, receiver) = oneshot::channel();
        let (exit, exit_watch) = watch::channel(None);
        let sink = Arc::new(Fd::new(writer.into()).unwrap());
        let task = tokio::spawn(input(sink, receiver, exit_watch));
        let (mut host, theirs) = UnixStream::pair().unwrap();
        assert!(arrival.send(Connection::Unix(theirs)).is_ok());
        exit.send_replace(EXIT);
        task.await.unwrap();
        assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
