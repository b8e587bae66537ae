//! What can be said to the peer: a line, whose first word is one of these.
//!
//! ```text
//! echo                  sends back what comes, as it comes
//! after                 sends back what came, once its end has come
//! take SEED LEN         takes bytes to their end, which must be so many of the seed's
//! give SEED LEN         sends them, and takes what comes until the other end is done
//! both SEED LEN         takes those of the seed and sends those of the next seed, at once
//! stall SEED LEN        takes nothing until somebody says `release` on another stream; then as `take`
//! release               lets those go on
//! call PORT COUNT       connects so often to a port of the host's by vsock, where lines are said as they are here
//! run COMMAND           has the shell run it; answers its output
//! disk PATH OLD NEW LEN reads a disk, which must hold so many bytes of one seed (0: of any), and writes those of another
//! ```
//!
//! The last line of an answer is `ok`, or `FAILED` and why.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use orlop_guest_images::noise::Noise;

use super::{Gate, disk, serve, sockets};

const CHUNK: usize = 64 << 10;
/// The longest line.
const LINE_MAX: usize = 4096;

/// Reads the line on a stream and does what it says, to the end of the stream.
pub fn obey(stream: &File, gate: &Arc<Gate>) -> io::Result<()> {
    let line = read_line(stream)?;
    let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
    let done = match verb {
        // These answer by what they send back.
        "echo" => return echo(stream),
        "after" => return send_back(stream),
        "give" => return numbers(rest).and_then(|[seed, len]| give(stream, seed, len, true)),
        "take" => numbers(rest).and_then(|[seed, len]| take(stream, seed, len)),
        "both" => numbers(rest).and_then(|[seed, len]| both(stream, seed, len)),
        "stall" => {
            gate.wait();
            numbers(rest).and_then(|[seed, len]| take(stream, seed, len))
        }
        "release" => {
            gate.open();
            Ok(())
        }
        "call" => numbers(rest).and_then(|[port, count]| call(port, count, gate)),
        "run" => run(stream, rest),
        "disk" => disk::check(rest),
        _ => Err(io::Error::other(format!("{verb} is no word of mine"))),
    };
    let mut stream = stream;
    match done {
        Ok(()) => stream.write_all(b"ok\n"),
        Err(error) => writeln!(stream, "FAILED {error}"),
    }
}

/// One byte at a time, since what follows the line is not ours.
fn read_line(mut stream: &File) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE_MAX {
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::other("a stream ended before its first line"));
        }
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.extend(byte);
    }
    Err(io::Error::other("a line without end"))
}

/// The numbers in the rest of a line.
pub fn numbers<const N: usize>(rest: &str) -> io::Result<[u64; N]> {
    let parsed: Result<Vec<u64>, _> = rest.split(' ').map(str::parse).collect();
    let numbers = parsed.map_err(io::Error::other)?;
    numbers
        .try_into()
        .map_err(|_| io::Error::other(format!("{rest} is not as many numbers as are needed")))
}

fn echo(mut stream: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return sockets::end(stream);
        }
        stream.write_all(buffer.get(..count).unwrap_or_default())?;
    }
}

fn send_back(mut stream: &File) -> io::Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(&bytes)
}

fn take(mut stream: &File, seed: u64, len: u64) -> io::Result<()> {
    let noise = Noise::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        let got = buffer.get(..count).unwrap_or_default();
        if let Some(place) = noise.first_difference(at, got) {
            return Err(io::Error::other(format!("byte {place} is another one")));
        }
        at += got.len() as u64;
        match got.is_empty() {
            true if at == len => return Ok(()),
            true => return Err(io::Error::other(format!("{at} bytes came, not {len}"))),
            false => {}
        }
    }
}

fn give(mut stream: &File, seed: u64, len: u64, to_the_end: bool) -> io::Result<()> {
    let noise = Noise::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let count = usize::try_from(len - at).map_or(CHUNK, |left| left.min(CHUNK));
        let part = buffer.get_mut(..count).unwrap_or_default();
        noise.fill(at, part);
        stream.write_all(part)?;
        at += count as u64;
    }
    if to_the_end {
        sockets::end(stream)?;
        io::copy(&mut stream, &mut io::sink())?;
    }
    Ok(())
}

fn both(stream: &File, seed: u64, len: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let giver = scope.spawn(|| give(stream, seed + 1, len, false));
        let taken = take(stream, seed, len);
        let given = giver
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the giver is gone")));
        taken.and(given)
    })
}

fn call(port: u64, count: u64, gate: &Arc<Gate>) -> io::Result<()> {
    let port = u32::try_from(port).map_err(io::Error::other)?;
    (0..count).try_for_each(|_| {
        serve(sockets::call(port)?, gate);
        Ok(())
    })
}

fn run(mut stream: &File, script: &str) -> io::Result<()> {
    let done = Command::new("/bin/sh").args(["-c", script]).output()?;
    stream.write_all(&done.stdout)?;
    stream.write_all(&done.stderr)?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{script}: {}", done.status)))
}
