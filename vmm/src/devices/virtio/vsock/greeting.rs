//! Programs on the host that have just connected, and are to say which of the guest's ports they want: `CONNECT <port>\n`.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::table::PORT_ANY;

/// The longest line that means something: `CONNECT 4294967295\n`.
const LINE_MAX: usize = 19;
/// How long a program may take to say it.
const PATIENCE: Duration = Duration::from_secs(10);
/// As many may be at it at once; then the oldest must go.
const CROWD: usize = 256;
/// Their numbers are less than this, and begin anew.
pub const NUMBERS: u32 = u32::MAX >> 1;

/// Those that have not said it yet, by number, oldest first.
#[derive(Debug, Default)]
pub struct Greetings {
    callers: BTreeMap<u32, Caller>,
    last: u32,
}

#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

/// What a caller has come to.
#[derive(Debug)]
pub enum Heard {
    /// It has not said all yet.
    Nothing,
    /// It wants this port; whatever else it sent is still in the socket.
    Port(UnixStream, u32),
    /// It said something else, or left.
    Nonsense,
}

impl Greetings {
    /// Takes in a caller, whose socket does not block, and gives it a number. The oldest goes if it would become too crowded.
    pub fn add(&mut self, stream: UnixStream) -> u32 {
        if self.callers.len() >= CROWD {
            self.callers.pop_first();
        }
        self.last = (self.last + 1) % NUMBERS;
        let caller = Caller {
            stream,
            line: Vec::new(),
            until: Instant::now() + PATIENCE,
        };
        self.callers.insert(self.last, caller);
        self.last
    }

    /// The socket of a caller.
    pub fn stream(&self, number: u32) -> Option<&UnixStream> {
        self.callers.get(&number).map(|caller| &caller.stream)
    }

    /// Listens to a caller; it is gone from here unless it has yet to say something.
    pub fn listen(&mut self, number: u32) -> Heard {
        let Some(mut caller) = self.callers.remove(&number) else {
            return Heard::Nothing;
        };
        loop {
            // One byte at a time, since what follows the line is the guest's.
            let mut byte = [0];
            match caller.stream.read(&mut byte) {
                Ok(0) => return Heard::Nonsense,
                Ok(_) if byte == *b"\n" => {
                    return match port(&caller.line) {
                        Some(port) => Heard::Port(caller.stream, port),
                        None => Heard::Nonsense,
                    };
                }
                Ok(_) if caller.line.len() + 1 == LINE_MAX => return Heard::Nonsense,
                Ok(_) => caller.line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.callers.insert(number, caller);
                    return Heard::Nothing;
                }
                Err(_) => return Heard::Nonsense,
            }
        }
    }

    /// Sends away those that took too long; says when to come back, if anyone is left.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.callers.first_entry() {
            if first.get().until > now {
                return Some(first.get().until);
            }
            first.remove();
        }
        None
    }
}

/// The port in a line without its end.
fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (port != PORT_ANY).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_port_is_a_decimal_number_of_32_bits() {
        assert_eq!(port(b"CONNECT 0"), Some(0));
        assert_eq!(port(b"CONNECT 1024"), Some(1024));
        assert_eq!(port(b"CONNECT 4294967294"), Some(u32::MAX - 1));
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT  1",
            "CONNECT 1 ",
            "CONNECT +1",
            "CONNECT -1",
            "CONNECT 0x10",
            "CONNECT 4294967295",
            "CONNECT 4294967296",
            "connect 1",
            "GET / HTTP",
            "CONNECT 1\r",
        ] {
            assert_eq!(port(line.as_bytes()), None, "{line:?}");
        }
    }

    fn caller(greetings: &mut Greetings) -> (UnixStream, u32) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (theirs, greetings.add(ours))
    }

    #[test]
    fn a_line_may_come_in_parts_and_what_follows_is_left() {
        let mut greetings = Greetings::default();
        let (mut them, number) = caller(&mut greetings);
        assert!(matches!(greetings.listen(number), Heard::Nothing));
        them.write_all(b"CONN").unwrap();
        assert!(matches!(greetings.listen(number), Heard::Nothing));
        them.write_all(b"ECT 52\nCONNECT 53\n").unwrap();
        let Heard::Port(mut stream, 52) = greetings.listen(number) else {
            panic!("not heard");
        };
        let mut rest = [0; 32];
        let count = stream.read(&mut rest).unwrap();
        assert_eq!(&rest[..count], b"CONNECT 53\n");
        assert!(greetings.callers.is_empty());
    }

    #[test]
    fn nonsense_ends_it_at_once() {
        let endless = "CONNECT 0000000000000000000000000000000000000001";
        for line in ["GET / HTTP/1.1\r\n", "\n", endless] {
            let mut greetings = Greetings::default();
            let (mut them, number) = caller(&mut greetings);
            them.write_all(line.as_bytes()).unwrap();
            assert!(
                matches!(greetings.listen(number), Heard::Nonsense),
                "{line}"
            );
            assert!(greetings.callers.is_empty());
        }
    }

    #[test]
    fn the_silent_are_sent_away() {
        let mut greetings = Greetings::default();
        let (mut them, _) = caller(&mut greetings);
        let now = Instant::now();
        assert!(greetings.expire(now).is_some_and(|until| until > now));
        assert_eq!(greetings.expire(now + PATIENCE), None);
        assert_eq!(them.read(&mut [0]).unwrap(), 0, "closed");
    }

    #[test]
    fn a_crowd_pushes_the_oldest_out() {
        let mut greetings = Greetings::default();
        let mut callers: Vec<_> = (0..CROWD).map(|_| caller(&mut greetings)).collect();
        callers.push(caller(&mut greetings));
        assert_eq!(greetings.callers.len(), CROWD);
        assert_eq!(callers[0].0.read(&mut [0]).unwrap(), 0, "closed");
        let second = callers[1].0.read(&mut [0]).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    }
}
