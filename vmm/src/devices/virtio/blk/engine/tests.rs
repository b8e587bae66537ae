//! Jobs step by step, and what the engines make of many.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::super::request::Request;
use super::job::Op;
use super::ring::Ring;
use super::*;
use crate::devices::virtio::test_driver::{TestQueue, ram};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Jobs whose chains have this much to read behind a header, and to write.
fn jobs(requests: &[Request], bytes: u32, durable: bool) -> Vec<Job> {
    let memory = ram(0x100000);
    let mut driver = TestQueue::new(&memory, 0x1000, 256, false);
    let mut queue = driver.queue();
    let mut job = |request: &Request| {
        let chain = [
            (0x8000, 16, false),
            (0x10000, bytes, false),
            (0x20000, bytes, true),
            (0x8100, 1, true),
        ];
        driver.add(&chain).unwrap();
        let chain = queue.pop(&memory).unwrap().unwrap();
        Job::new(chain, *request, &memory, durable).unwrap()
    };
    requests.iter().map(&mut job).collect()
}

pub(super) fn job(request: Request, bytes: u32, durable: bool) -> Job {
    jobs(&[request], bytes, durable).remove(0)
}

fn errno(number: i32) -> io::Result<usize> {
    Err(io::Error::from_raw_os_error(number))
}

#[test]
fn short_transfers_are_continued() {
    let request = Request::Read {
        offset: 1000,
        len: 200,
    };
    let mut read = job(request, 200, true);
    let mut asked = Vec::new();
    for went in [Ok(70), errno(libc::EINTR), Ok(70), Ok(60)] {
        let bytes: usize = read.pieces().list().iter().map(|piece| piece.iov_len).sum();
        asked.push((read.next(), bytes));
        read.went(went);
    }
    let op = |offset| Some(Op::Read { offset });
    let expected = [
        (op(1000), 200),
        (op(1070), 130),
        (op(1070), 130),
        (op(1140), 60),
    ];
    assert_eq!(asked, expected);
    assert_eq!(read.next(), None);
    assert!(read.result().is_ok());
}

#[test]
fn an_end_of_the_file_is_an_error() {
    let (offset, len) = (0, 512);
    for request in [
        Request::Read { offset, len },
        Request::Write { offset, len },
    ] {
        let mut job = job(request, 512, true);
        job.went(Ok(0));
        assert_eq!(job.next(), None);
        let error = job.result().as_ref().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_durable_write_ends_with_a_sync_whose_failure_is_its_own() {
    let request = Request::Write {
        offset: 0,
        len: 512,
    };
    let mut write = job(request, 512, true);
    write.went(Ok(512));
    assert_eq!(write.next(), Some(Op::Sync));
    write.went(errno(libc::EIO));
    assert_eq!(write.next(), None);
    assert!(write.result().is_err());
    let mut write = job(request, 512, false);
    write.went(Ok(512));
    assert_eq!(write.next(), None);
}

#[test]
fn zeroes_are_written_when_nothing_else_works() {
    let (offset, len) = (4096, 100_000);
    let request = Request::WriteZeroes {
        offset,
        len,
        unmap: true,
    };
    let mut zero = job(request, 16, true);
    let mut asked = Vec::new();
    for went in [
        errno(libc::EOPNOTSUPP),
        errno(libc::EOPNOTSUPP),
        Ok(65536),
        Ok(34464),
        Ok(0),
    ] {
        asked.push(zero.next().unwrap());
        zero.went(went);
    }
    let allocate = |mode| Op::Allocate { mode, offset, len };
    let zeroes = |offset, len| Op::Zeroes { offset, len };
    let expected = [
        allocate(PUNCH),
        allocate(ZERO),
        zeroes(4096, 100_000),
        zeroes(69632, 34464),
        Op::Sync,
    ];
    assert_eq!(asked, expected);
    assert_eq!(zero.next(), None);
    assert!(zero.result().is_ok());
}

#[test]
fn a_discard_that_the_disk_cannot_do_is_done() {
    let request = Request::Discard {
        offset: 0,
        len: 512,
    };
    let mut discard = job(request, 16, true);
    discard.went(errno(libc::EOPNOTSUPP));
    assert_eq!(discard.next(), None);
    assert!(discard.result().is_ok());
    let mut discard = job(request, 16, true);
    discard.went(errno(libc::EIO));
    assert!(discard.result().is_err());
}

#[test]
fn a_transfer_of_more_pieces_than_a_call_takes_is_done_by_several() {
    /// Of one byte each, apart from each other.
    const PIECES: usize = 1500;
    let memory = ram(0x100000);
    let file = tempfile::tempfile().unwrap();
    let content: Vec<_> = (0..PIECES).map(|at| at as u8).collect();
    for kind in [Kind::Calls, Kind::Ring] {
        let mut engine = match Engine::new(kind, &file, 2048) {
            Ok(engine) => engine,
            Err(error) => return println!("skipped: there is no io_uring here: {error}"),
        };
        let mut run = |base, writable, request| {
            let mut driver = TestQueue::new(&memory, 0x1000, 2048, false);
            let mut chain = vec![(0x80000, 16, false)];
            chain.extend((0..PIECES as u64).map(|at| (base + 2 * at, 1, writable)));
            driver.add(&chain).unwrap();
            let chain = driver.queue().pop(&memory).unwrap().unwrap();
            engine.push(Job::new(chain, request, &memory, true).unwrap());
            let mut done = Vec::new();
            engine.drain(&mut done).unwrap();
            done[0].result().as_ref().unwrap();
        };
        for (at, byte) in content.iter().enumerate() {
            let place = GuestAddress(0x90000 + 2 * at as u64);
            memory.write_obj(*byte, place).unwrap();
        }
        file.set_len(0).unwrap();
        let (offset, len) = (512, PIECES);
        run(0x90000, false, Request::Write { offset, len });
        let mut written = vec![0; PIECES];
        file.read_exact_at(&mut written, 512).unwrap();
        assert_eq!(written, content);
        run(0xa0000, true, Request::Read { offset, len });
        for (at, byte) in content.iter().enumerate() {
            let place = GuestAddress(0xa0000 + 2 * at as u64);
            assert_eq!(memory.read_obj::<u8>(place).unwrap(), *byte);
        }
    }
}

fn ring(file: &File) -> Option<Ring> {
    Ring::new(file, 256)
        .map_err(|error| println!("skipped: there is no io_uring here: {error}"))
        .ok()
}

#[test]
fn all_that_was_pushed_goes_to_the_kernel_in_one_call() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[3; 512], 0).unwrap();
    let Some(mut ring) = ring(&file) else { return };
    let request = Request::Read {
        offset: 0,
        len: 512,
    };
    for job in jobs(&[request; 60], 512, true) {
        ring.push(job);
    }
    assert_eq!(ring.calls(), 0);
    let mut done = Vec::new();
    ring.turn(&mut done).unwrap();
    assert_eq!(ring.calls(), 1);
    ring.drain(&mut done).unwrap();
    assert_eq!(done.len(), 60);
    for job in done {
        job.result().as_ref().unwrap();
    }
}

#[test]
fn small_writes_to_a_file_are_made_without_the_ring_which_makes_them_durable() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(512).unwrap();
    let Some(mut ring) = ring(&file) else { return };
    let write = |len| Request::Write { offset: 0, len };
    let mut done = Vec::new();
    // The last one is too large for that.
    for (len, durable, calls) in [(512, false, 0), (512, true, 1), (68 << 10, false, 1)] {
        let before = ring.calls();
        ring.push(job(write(len), len as u32, durable));
        ring.turn(&mut done).unwrap();
        assert_eq!(ring.calls() - before, calls, "{len} bytes");
        ring.drain(&mut done).unwrap();
    }
    assert_eq!(done.len(), 3);
    for job in done {
        job.result().as_ref().unwrap();
    }
}

#[test]
fn a_job_with_a_head_that_is_in_flight_fails_alone() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(512).unwrap();
    let Some(mut ring) = ring(&file) else { return };
    let request = Request::Read {
        offset: 0,
        len: 512,
    };
    ring.push(job(request, 512, true));
    ring.push(job(request, 512, true));
    let mut done = Vec::new();
    ring.drain(&mut done).unwrap();
    let failed = done.iter().filter(|job| job.result().is_err()).count();
    assert_eq!((failed, done.len()), (1, 2));
}

#[test]
fn a_ring_that_is_gone_holds_no_lock() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    for _ in 0..50 {
        let image = super::super::image::Image::open(file.path(), false).unwrap();
        let Some(mut ring) = ring(&image.file) else {
            return;
        };
        ring.push(job(Request::Flush, 16, true));
    }
}
