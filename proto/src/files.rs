//! Files that are handed over beside the bytes of a unix socket (SCM_RIGHTS, unix(7)).
//!
//! A client puts them into its [`Files`], and they go with the next bytes that it sends: those of the call that is about them, at the latest. The
//! server finds them in its own, in that order, when it reads the call. So a call that is about files says how many, and no other such call
//! is made on the same connection before it is answered.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

/// As many files as wait for a call about them. What a client sends beyond that is closed.
pub const WAITING_MAX: usize = 64;
/// As many as the kernel hands over at once (SCM_MAX_FD). With room for them, none is lost on the way.
const AT_ONCE: usize = 253;

/// Files on their way, from a client or to a server. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<Mutex<VecDeque<OwnedFd>>>);

/// There are fewer files than a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the call is about {wanted} files, and {found} came with it")]
pub struct Missing {
    /// What the call says.
    pub wanted: usize,
    /// What came.
    pub found: usize,
}

impl Files {
    /// Has a file go with the next bytes.
    pub fn push(&self, file: OwnedFd) {
        let mut waiting = self.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push_back(file);
        }
    }

    /// Takes the first `wanted` that came.
    ///
    /// # Errors
    /// [`Missing`] when there are fewer; they are closed then.
    pub fn take(&self, wanted: usize) -> Result<Vec<OwnedFd>, Missing> {
        let mut waiting = self.lock();
        let found = waiting.len();
        let taken: Vec<_> = waiting.drain(..wanted.min(found)).collect();
        if taken.len() < wanted {
            return Err(Missing { wanted, found });
        }
        Ok(taken)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<OwnedFd>> {
        // No change of it is ever left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on which files travel, one way: what a server has received and not taken yet must not go back with its next bytes.
#[derive(Debug)]
pub struct Carrier {
    stream: UnixStream,
    files: Files,
    way: Way,
}

/// Which way files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

impl Carrier {
    /// A client's connection: `files` go out on it. Those that come in are closed.
    pub fn client(stream: UnixStream, files: Files) -> Self {
        let way = Way::Out;
        Carrier { stream, files, way }
    }

    /// A server's connection: the files that come in on it.
    pub fn server(stream: UnixStream) -> Self {
        let (files, way) = (Files::default(), Way::In);
        Carrier { stream, files, way }
    }

    /// Sends bytes, with the files that wait. They have gone if a single byte has.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL;
        let stream = self.stream.as_raw_fd();
        let bytes = [IoSlice::new(bytes)];
        if self.way == Way::In {
            return Ok(sendmsg::<UnixAddr>(stream, &bytes, &[], flags, None)?);
        }
        let mut waiting = self.files.lock();
        let numbers: Vec<RawFd> = waiting.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights };
        let sent = sendmsg::<UnixAddr>(stream, &bytes, control, flags, None)?;
        waiting.clear();
        Ok(sent)
    }

    /// Receives bytes, and the files that come with them.
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        let mut control = nix::cmsg_space!([RawFd; AT_ONCE]);
        let mut room = [IoSliceMut::new(room)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let stream = self.stream.as_raw_fd();
        let message = recvmsg::<UnixAddr>(stream, &mut room, Some(&mut control), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                for number in numbers {
                    // SAFETY: the kernel has just opened it for this process, and nobody else knows of it.
                    let file = unsafe { OwnedFd::from_raw_fd(number) };
                    if self.way == Way::In {
                        self.files.push(file);
                    }
                }
            }
        }
        Ok(message.bytes)
    }
}

impl Connected for Carrier {
    type ConnectInfo = Files;

    fn connect_info(&self) -> Files {
        self.files.clone()
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            let received = self
                .stream
                .try_io(Interest::READABLE, || self.receive(room));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received.map(|count| buffer.advance(count))),
            }
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || self.send(bytes));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A descriptor of this process, as one that can be handed over while it stays open here.
///
/// # Errors
/// When it is not open.
pub fn copy(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(nix::libc::EBADF));
    }
    // SAFETY: it is only borrowed for a call that makes a new one of it, or fails.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn run<T>(story: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(story)
    }

    fn pair() -> (Carrier, Carrier) {
        let (client, server) = UnixStream::pair().unwrap();
        (
            Carrier::client(client, Files::default()),
            Carrier::server(server),
        )
    }

    #[test]
    fn files_go_with_the_next_bytes_and_keep_their_order() {
        run(async {
            let (mut client, mut server) = pair();
            let pipes = [io::pipe().unwrap(), io::pipe().unwrap()];
            let mut readers = Vec::new();
            for (reader, writer) in pipes {
                client.files.push(writer.into());
                readers.push(reader);
            }
            client.write_all(b"call").await.unwrap();
            client.write_all(b"more").await.unwrap();
            let mut bytes = [0; 8];
            server.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"callmore");
            let files = server.files.take(2).unwrap();
            for (number, (file, mut reader)) in (0..).zip(files.into_iter().zip(readers)) {
                std::fs::File::from(file).write_all(&[number]).unwrap();
                let mut read = Vec::new();
                reader.read_to_end(&mut read).unwrap();
                assert_eq!(read, [number], "nobody else has it open any more");
            }
            let missing = server.files.take(1).unwrap_err();
            assert_eq!((missing.wanted, missing.found), (1, 0));
        });
    }

    #[test]
    fn files_stay_with_the_server_whatever_it_sends() {
        run(async {
            let (mut client, mut server) = pair();
            client.files.push(io::pipe().unwrap().1.into());
            client.write_all(b"call").await.unwrap();
            server.read_exact(&mut [0; 4]).await.unwrap();
            server.write_all(b"not yet").await.unwrap();
            client.read_exact(&mut [0; 7]).await.unwrap();
            assert!(client.files.take(1).is_err(), "it came back");
            assert_eq!(server.files.take(1).unwrap().len(), 1);
        });
    }

    #[test]
    fn a_client_cannot_fill_the_server_with_files() {
        run(async {
            let (mut client, mut server) = pair();
            for _ in 0..3 {
                for _ in 0..WAITING_MAX {
                    client.files.push(io::pipe().unwrap().1.into());
                }
                client.write_all(b"x").await.unwrap();
                server.read_u8().await.unwrap();
            }
            assert_eq!(server.files.lock().len(), WAITING_MAX);
        });
    }

    #[test]
    fn more_bytes_than_fit_at_once_arrive_whole() {
        run(async {
            let (mut client, mut server) = pair();
            client.files.push(io::pipe().unwrap().1.into());
            let sent: Vec<u8> = (0..4 << 20).map(|at: u32| (at >> 3) as u8).collect();
            let bytes = sent.clone();
            let sending = tokio::spawn(async move {
                client.write_all(&bytes).await.unwrap();
                client.shutdown().await.unwrap();
            });
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            sending.await.unwrap();
            assert!(received == sent);
            assert_eq!(server.files.take(1).unwrap().len(), 1);
        });
    }
}
