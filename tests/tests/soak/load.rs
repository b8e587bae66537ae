//! What the VM works on all the while: its disk, its network card and its vsock, each in a thread of the host's. What the guest gets and
//! sends is looked at byte by byte.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::guest::LIMIT;
use crate::guest::peer::{self, PORT, answer, exchange};

/// How much is exchanged at a time, and how large the disk is.
const LEN: u64 = 1 << 20;
pub const DISK: u64 = 2 << 20;

/// What the threads share.
#[derive(Debug, Default)]
pub struct State {
    /// Odd while the guest is being reset. What began before a reset may fail, and nothing else may.
    lives: AtomicU64,
    /// The threads are to have nothing under way.
    rest: AtomicBool,
    over: AtomicBool,
    working: AtomicU64,
    /// How often each thing was done.
    pub rounds: [AtomicU64; 3],
}

impl State {
    /// A reset begins or is over.
    pub fn turn(&self) {
        self.lives.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until nothing is under way, and keeps it so until `go_on`.
    pub fn rest(&self) {
        self.rest.store(true, Ordering::SeqCst);
        while self.working.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn go_on(&self) {
        self.rest.store(false, Ordering::SeqCst);
    }
}

/// Exchanges something that is made of a seed.
type Step = Box<dyn FnMut(u64) -> Result<(), String> + Send>;

/// The threads.
pub struct Load {
    pub state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// On the vsock socket of a VM whose card has this address.
    pub fn begin(vsock: &Path, card: &str) -> Self {
        let state = Arc::new(State::default());
        let (card, vsock) = (card.to_owned(), vsock.to_owned());
        let steps: [Step; 3] = [
            Box::new({
                let (vsock, mut known) = (vsock.clone(), 0);
                move |seed| disk(&vsock, &mut known, seed)
            }),
            Box::new(move |seed| net(&card, seed)),
            Box::new(move |seed| streams(&vsock, seed)),
        ];
        let threads = (0..).zip(steps).map(|(index, step)| {
            let state = Arc::clone(&state);
            thread::spawn(move || work(&state, index, step))
        });
        let threads = threads.collect();
        Load { state, threads }
    }

    /// Whether nothing has failed yet. A thread in which something did has said what, and ended.
    pub fn is_well(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    pub fn end(self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.state.go_on();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn work(state: &State, index: usize, mut step: impl FnMut(u64) -> Result<(), String>) {
    let mut seed = 1;
    while !state.over.load(Ordering::SeqCst) {
        state.working.fetch_add(1, Ordering::SeqCst);
        let life = state.lives.load(Ordering::SeqCst);
        if state.rest.load(Ordering::SeqCst) || life % 2 == 1 {
            state.working.fetch_sub(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        seed += 2;
        let done = step(seed);
        state.working.fetch_sub(1, Ordering::SeqCst);
        match done {
            Ok(()) => {
                state.rounds[index].fetch_add(1, Ordering::Relaxed);
            }
            Err(why) => assert!(
                state.lives.load(Ordering::SeqCst) != life,
                "load {index}, seed {seed}: {why}"
            ),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The guest reads its disk, which must hold what it wrote the last time, and writes other bytes. A reset in between leaves both.
fn disk(vsock: &Path, known: &mut u64, seed: u64) -> Result<(), String> {
    let before = std::mem::replace(known, 0);
    ask(vsock, &format!("disk /dev/vda {before} {seed} {DISK}"))?;
    *known = seed;
    Ok(())
}

/// Exchanges bytes with the peer by the card with an address.
pub fn net(card: &str, seed: u64) -> Result<(), String> {
    let address = SocketAddr::new(card.parse().unwrap(), PORT as u16);
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).map_err(|e| e.to_string())?;
    let patient = stream.set_read_timeout(Some(LIMIT));
    patient
        .and_then(|()| stream.set_write_timeout(Some(LIMIT)))
        .and_then(|()| writeln!(stream, "both {seed} {LEN}"))
        .map_err(|error| error.to_string())?;
    exchange(stream, seed, LEN)
}

fn streams(vsock: &Path, seed: u64) -> Result<(), String> {
    let mut stream = peer::dial(vsock, PORT).map_err(|error| error.to_string())?;
    writeln!(stream, "both {seed} {LEN}").map_err(|error| error.to_string())?;
    exchange(stream, seed, LEN)
}

/// Says a line to the peer and waits for the answer.
fn ask(vsock: &Path, line: &str) -> Result<String, String> {
    let mut stream = peer::dial(vsock, PORT).map_err(|error| error.to_string())?;
    writeln!(stream, "{line}").map_err(|error| error.to_string())?;
    answer(stream)
}
