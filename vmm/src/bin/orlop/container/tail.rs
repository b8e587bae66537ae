//! The end of what somebody writes, however much that is: a guest writes to its console what it likes.

use std::io::{Read, Result};
use std::thread::{self, JoinHandle};

/// How many lines are kept.
const LINES: usize = 4;
/// How many bytes of a line are kept.
const LINE: usize = 512;
/// What a guest's kernel says why it ends, and what follows is where it was then.
const LAST: &str = "Kernel panic";

/// Reads to the end, so that whoever writes never waits, and keeps the last lines that are not empty, or the last ones until a kernel's last
/// words. To be joined when the writer is gone.
///
/// # Errors
/// When there is no thread to be had.
pub fn keep(name: &str, from: impl Read + Send + 'static) -> Result<JoinHandle<Vec<String>>> {
    let keep = move || read(from);
    thread::Builder::new().name(name.into()).spawn(keep)
}

fn read(mut from: impl Read) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut block) {
        for byte in block.get(..count).unwrap_or_default() {
            match byte {
                b'\n' => close(&mut lines, &mut line),
                byte if line.len() < LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    close(&mut lines, &mut line);
    lines
}

fn close(lines: &mut Vec<String>, line: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(line);
    // It is shown on a terminal, of which the guest is to have no control.
    let text: String = text.chars().filter(|it| !it.is_control()).collect();
    line.clear();
    let over = lines.last().is_some_and(|line| line.contains(LAST));
    if !over && !text.trim().is_empty() {
        if lines.len() == LINES {
            lines.remove(0);
        }
        lines.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more_of_them_than_is_read_by_people() {
        assert_eq!(read(&b""[..]), [""; 0]);
        assert_eq!(read(&b"one\r\n\n \ntwo"[..]), ["one", "two"]);
        assert_eq!(read(&b"\x1b[31mred\n"[..]), ["[31mred"]);
        let many: String = (0..10_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(read(many.as_bytes()), ["9996", "9997", "9998", "9999"]);
        let panic = b"before\n[1.0] Kernel panic - not syncing: x\n[1.0] Call Trace:\n[1.0] y\n";
        assert_eq!(
            read(&panic[..]),
            ["before", "[1.0] Kernel panic - not syncing: x"]
        );
        let long = vec![b'x'; 1 << 20];
        assert_eq!(read(&*long), ["x".repeat(LINE)]);
    }
}
