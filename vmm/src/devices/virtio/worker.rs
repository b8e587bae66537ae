//! The threads that devices work in.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::StartError;
use crate::memory::own_code;

/// A thread that runs until it is told to stop, and then gives back what it worked with. Dropping it stops it too, so no
/// thread outlives its device.
#[derive(Debug)]
pub struct Worker<T> {
    stop: EventFd,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `run` on a thread called `name` (up to 15 characters are seen). It must return soon after `Events::wait` has
    /// said [`Wake::Stop`], or by itself.
    ///
    /// # Errors
    /// When the thread or its epoll cannot be had.
    pub fn spawn(
        name: &str,
        run: impl FnOnce(&mut Events) -> T + Send + 'static,
    ) -> Result<Self, StartError> {
        let system = |what| move |source| StartError::System { what, source };
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(system("create an eventfd"))?;
        let mut events = Events::new(&stop).map_err(system("create an epoll"))?;
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&mut events))
            .map_err(system("start a thread"))?;
        Ok(Worker {
            stop,
            thread: Some(thread),
        })
    }

    /// Tells the thread to stop, and does not wait for it: for one that must be waited for, but not before others were told as well.
    pub fn tell_to_stop(&self) {
        // The only failure is a counter that is full, and then the thread is stopping anyway.
        let _ = self.stop.write(1);
    }

    /// Stops the thread and takes back what it returned; `None` if it panicked.
    pub fn stop(mut self) -> Option<T> {
        self.join()
    }
}

impl<T> Worker<T> {
    fn join(&mut self) -> Option<T> {
        let thread = self.thread.take()?;
        // The only failure is a counter that is full, and then the thread is stopping anyway.
        let _ = self.stop.write(1);
        thread.join().ok()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.join();
    }
}

/// What a worker waits for: file descriptors under tokens of its choice.
#[derive(Debug)]
pub struct Events {
    epoll: Epoll,
    ready: Vec<EpollEvent>,
}

/// What woke a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The device is being stopped: return.
    Stop,
    /// The descriptor under this token is ready in the given ways.
    Ready(u64, EventSet),
}

/// The stop event's token; the last that a caller would choose.
const STOP: u64 = u64::MAX;
/// How long a worker waits that is taken to have nothing to do for longer.
const REST_MS: i32 = 1000;
/// As many events as one wait brings.
const BATCH: usize = 64;

impl Events {
    fn new(stop: &EventFd) -> io::Result<Self> {
        let mut events = Events {
            epoll: Epoll::new()?,
            ready: Vec::with_capacity(BATCH),
        };
        events.add(stop, EventSet::IN, STOP)?;
        Ok(events)
    }

    /// Waits for `fd` to be ready in the ways of `interest`, under `token` (not `u64::MAX`). Level-triggered, unless
    /// `interest` holds `EDGE_TRIGGERED`.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn add(&mut self, fd: &impl AsRawFd, interest: EventSet, token: u64) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), interest, token)
    }

    /// Wakes for each write to `signal`, under `token` (not `u64::MAX`). Nobody need read it, which is a system call less for each kick of a guest's: what
    /// it has counted does not matter.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn add_signal(&mut self, signal: &EventFd, token: u64) -> io::Result<()> {
        self.add(signal, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn modify(&mut self, fd: &impl AsRawFd, interest: EventSet, token: u64) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), interest, token)
    }

    /// No longer waits for `fd`. To be called before it is closed.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn remove(&mut self, fd: &impl AsRawFd) -> io::Result<()> {
        self.control(
            ControlOperation::Delete,
            fd.as_raw_fd(),
            EventSet::empty(),
            0,
        )
    }

    /// Waits, at most `timeout_ms` milliseconds (-1: for ever), and says what is ready; empty when the time ran out.
    /// When the list holds [`Wake::Stop`], it stands last.
    ///
    /// Whoever may wait for ever and has done so for a while lets go of the program's code, as the VM's own thread does: a request each minute, as for random
    /// numbers, would otherwise keep all that it has gone through.
    pub fn wait(&mut self, timeout_ms: i32) -> Vec<Wake> {
        let waited = match timeout_ms {
            -1 => match self.poll(REST_MS) {
                Ok(0) => {
                    // It costs memory only, and the VM's own thread says so.
                    let _ = own_code::let_go();
                    self.poll(-1)
                }
                woken => woken,
            },
            _ => self.poll(timeout_ms),
        };
        let count = match waited {
            Ok(count) => count,
            Err(error) => {
                // Only a bad descriptor gets here; without events the worker can only end.
                log::error!("epoll_wait: {error}");
                return vec![Wake::Stop];
            }
        };
        let (stop, mut ready): (Vec<_>, Vec<_>) = self
            .ready
            .iter()
            .take(count)
            .map(|event| match event.data() {
                STOP => Wake::Stop,
                token => Wake::Ready(token, event.event_set()),
            })
            .partition(|wake| *wake == Wake::Stop);
        ready.extend(stop);
        ready
    }

    /// Waits, and says how many are ready.
    fn poll(&mut self, timeout_ms: i32) -> io::Result<usize> {
        self.ready.resize(BATCH, EpollEvent::default());
        loop {
            match self.epoll.wait(timeout_ms, &mut self.ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                waited => return waited,
            }
        }
    }

    fn control(
        &mut self,
        operation: ControlOperation,
        fd: RawFd,
        interest: EventSet,
        token: u64,
    ) -> io::Result<()> {
        self.epoll
            .ctl(operation, fd, EpollEvent::new(interest, token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_write_to_a_signal_wakes_though_nobody_reads_it() {
        let stop = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut events = Events::new(&stop).unwrap();
        let signal = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        events.add_signal(&signal, 3).unwrap();
        assert_eq!(events.wait(0), []);
        for _ in 0..3 {
            signal.write(1).unwrap();
            let woken = events.wait(-1);
            assert_eq!(woken, [Wake::Ready(3, EventSet::IN)]);
            assert_eq!(events.wait(0), []);
        }
        // One that was written before it was added.
        let earlier = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        earlier.write(1).unwrap();
        events.add_signal(&earlier, 4).unwrap();
        assert_eq!(events.wait(-1), [Wake::Ready(4, EventSet::IN)]);
    }

    #[test]
    fn a_worker_gives_back_what_it_returned() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let kick = event.try_clone().unwrap();
        let worker = Worker::spawn("test", move |events| {
            events.add(&event, EventSet::IN, 7).unwrap();
            let mut seen = 0;
            loop {
                for wake in events.wait(-1) {
                    match wake {
                        Wake::Stop => return seen,
                        Wake::Ready(token, _) => {
                            assert_eq!(token, 7);
                            seen += event.read().unwrap();
                        }
                    }
                }
            }
        })
        .unwrap();
        kick.write(3).unwrap();
        assert_eq!(worker.stop(), Some(3));
    }

    #[test]
    fn a_worker_that_is_dropped_has_ended() {
        let alive = std::sync::Arc::new(());
        let held = alive.clone();
        let worker = Worker::spawn("test", move |events| {
            while !events.wait(-1).contains(&Wake::Stop) {}
            drop(held);
        })
        .unwrap();
        drop(worker);
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    }
}
