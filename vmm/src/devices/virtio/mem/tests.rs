//! A started device, its driver, and a region of four blocks.

use std::os::fd::AsRawFd as _;

use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion as _};

use super::*;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::test_driver::{PATIENCE, Random, TestQueue, TestTransport, ram, wait};
use crate::memory::pluggable;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

const BLOCK: u64 = 2 << 20;
const START: u64 = 4 << 30;
const REQUEST: u64 = 0x10000;
const ANSWER: u64 = 0x11000;

struct Machine {
    mem: Mem,
    region: Arc<Region>,
    memory: Arc<GuestMemory>,
    driver: TestQueue,
    transport: TestTransport,
}

impl Machine {
    fn new() -> Self {
        let region = pluggable::region(GuestAddress(START), 4 * BLOCK).unwrap();
        let region = Arc::new(region);
        let memory = ram(0x40000).insert_region(region.clone()).unwrap();
        let memory = Arc::new(memory);
        let driver = TestQueue::new(&memory, 0x1000, QUEUE_SIZE, true);
        let transport = TestTransport::new();
        let mut mem = Mem::new(region.clone(), 0).unwrap();
        mem.start(transport.active(mem.features() | 1 << 32, &[&driver]))
            .unwrap();
        Machine {
            mem,
            region,
            memory,
            driver,
            transport,
        }
    }

    /// The answer's type and state.
    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.memory
            .write_slice(&request, GuestAddress(REQUEST))
            .unwrap();
        let chain = [(REQUEST, 24, false), (ANSWER, 10, true)];
        let head = self.driver.add(&chain).unwrap();
        self.driver.kick();
        assert_eq!(self.driver.wait_used(), (head, 10));
        let word = |at| self.memory.read_obj::<u16>(GuestAddress(at)).unwrap();
        (word(ANSWER), word(ANSWER + 8))
    }

    fn has(&self, address: u64) -> bool {
        self.memory.read_obj::<u8>(GuestAddress(address)).is_ok()
    }

    /// Whether the kernel finds something where KVM looks for it.
    fn kernel_finds(&self, address: u64) -> bool {
        let at = self.region.address_for_kernel() + (address - START);
        let (_reader, pipe) = std::io::pipe().unwrap();
        // SAFETY: the kernel checks what it reads, and says EFAULT for what cannot be read.
        let done = unsafe { libc::write(pipe.as_raw_fd(), at as *const libc::c_void, 1) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert!(done == 1 || error == Some(libc::EFAULT));
        done == 1
    }
}

#[test]
fn a_guest_has_what_it_plugs_and_no_more() {
    let mut machine = Machine::new();
    assert!(!machine.has(START));
    assert_eq!(machine.ask(PLUG, START, 1), (NACK, 0), "it is to have none");
    let mut reached = machine.mem.target().set(3 * BLOCK).unwrap();
    assert!(wait(&machine.transport.config, PATIENCE), "it was told");
    assert_eq!(machine.ask(PLUG, START, 2), (ACK, 0));
    assert_eq!(machine.ask(PLUG, START + 2 * BLOCK, 2), (NACK, 0));
    assert!(reached.try_recv().is_err(), "too early");
    assert_eq!(machine.ask(PLUG, START + 3 * BLOCK, 1), (ACK, 0));
    reached.try_recv().unwrap();
    for (block, plugged) in (0..).zip([true, true, false, true]) {
        let at = START + block * BLOCK;
        assert_eq!(machine.has(at), plugged, "{block}");
        assert_eq!(machine.has(at + BLOCK - 1), plugged, "{block}");
        let state = if plugged { 0 } else { 1 };
        assert_eq!(machine.ask(STATE, at, 1), (ACK, state), "{block}");
    }
    assert_eq!(machine.ask(STATE, START, 4), (ACK, 2), "mixed");
    // Across a border, one side of which is not there.
    let word = GuestAddress(START + 2 * BLOCK - 4);
    assert!(machine.memory.read_obj::<u64>(word).is_err());
    assert_eq!(machine.mem.target().plugged(), 3 * BLOCK);
}

#[test]
fn what_a_guest_unplugs_is_the_host_s() {
    let mut machine = Machine::new();
    drop(machine.mem.target().set(4 * BLOCK).unwrap());
    assert_eq!(machine.ask(PLUG, START, 4), (ACK, 0));
    let written = GuestAddress(START + BLOCK);
    machine.memory.write_obj(7_u8, written).unwrap();
    let blocks = || {
        let file = machine.region.file_offset().unwrap().file();
        std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap())
    };
    assert!(blocks() > 0);
    let reached = machine.mem.target().set(BLOCK).unwrap();
    assert_eq!(machine.ask(UNPLUG, START + BLOCK, 3), (ACK, 0));
    assert!(reached.blocking_recv().is_ok());
    let file = machine.region.file_offset().unwrap().file();
    let left = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    assert_eq!(left, 0, "the host has it");
    assert!(!machine.has(written.0));
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(machine.mem.target().plugged(), 0);
    assert_eq!(machine.ask(PLUG, START, 1), (ACK, 0));
    let zero: u8 = machine.memory.read_obj(GuestAddress(START)).unwrap();
    assert_eq!(zero, 0);
}

#[test]
fn the_kernel_finds_what_is_plugged_alone() {
    let mut machine = Machine::new();
    drop(machine.mem.target().set(4 * BLOCK).unwrap());
    assert!(!machine.kernel_finds(START));
    assert_eq!(machine.ask(PLUG, START + BLOCK, 1), (ACK, 0));
    assert!(machine.kernel_finds(START + BLOCK));
    assert!(machine.kernel_finds(START + 2 * BLOCK - 1));
    assert!(!machine.kernel_finds(START + 2 * BLOCK));
    assert_eq!(machine.ask(UNPLUG, START + BLOCK, 1), (ACK, 0));
    assert!(!machine.kernel_finds(START + BLOCK));
}

#[test]
fn another_size_ends_the_wait_for_the_one_before() {
    let machine = Machine::new();
    let target = machine.mem.target();
    let first = target.set(BLOCK).unwrap();
    let second = target.set(BLOCK).unwrap();
    let third = target.set(0).unwrap();
    assert!(first.blocking_recv().is_err());
    assert!(second.blocking_recv().is_err());
    assert!(third.blocking_recv().is_ok(), "it has none, as it is to");
    let most = 4 * BLOCK;
    let too_much = target.set(5 * BLOCK).unwrap_err();
    assert_eq!(too_much, NotSo::TooMuch { most });
    let part = target.set(BLOCK + 1).unwrap_err();
    assert_eq!(part, NotSo::PartOfBlock { block: BLOCK });
}

#[test]
fn the_driver_reads_how_much_it_is_to_have() {
    let mut machine = Machine::new();
    let before = machine.mem.config_generation();
    drop(machine.mem.target().set(2 * BLOCK).unwrap());
    assert_ne!(machine.mem.config_generation(), before);
    assert_eq!(machine.ask(PLUG, START, 1), (ACK, 0));
    let space = machine.mem.config().into_owned();
    let words: Vec<u64> = space
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    let all = 4 * BLOCK;
    assert_eq!(words, [BLOCK, 0, START, all, all, BLOCK, 2 * BLOCK]);
}

#[test]
fn a_driver_that_resets_the_device_keeps_its_memory() {
    let mut machine = Machine::new();
    drop(machine.mem.target().set(BLOCK).unwrap());
    assert_eq!(machine.ask(PLUG, START, 1), (ACK, 0));
    machine.mem.stop();
    assert_eq!(machine.mem.target().plugged(), BLOCK);
    assert!(machine.has(START));
}

#[test]
fn nonsense_is_an_error_and_changes_nothing() {
    let mut machine = Machine::new();
    drop(machine.mem.target().set(4 * BLOCK).unwrap());
    assert_eq!(machine.ask(PLUG, START, 2), (ACK, 0));
    for (kind, address, count) in [
        (PLUG, START, 1),
        (PLUG, START + BLOCK, 2),
        (PLUG, START + 2 * BLOCK, 3),
        (PLUG, START + 2 * BLOCK, 0),
        (PLUG, START + 2 * BLOCK + 4096, 1),
        (PLUG, START - BLOCK, 1),
        (PLUG, 0, 1),
        (PLUG, u64::MAX, u16::MAX),
        (PLUG, u64::MAX - BLOCK + 1, 1),
        (UNPLUG, START + 2 * BLOCK, 1),
        (UNPLUG, START + BLOCK, 2),
        (UNPLUG, START, 0),
        (STATE, START + 4 * BLOCK, 1),
        (STATE, START, u16::MAX),
        (4, START, 1),
        (u16::MAX, 0, 0),
    ] {
        let answer = machine.ask(kind, address, count);
        assert_eq!(answer, (ERROR, 0), "{kind} {address:#x} {count}");
    }
    assert_eq!(machine.mem.target().plugged(), 2 * BLOCK);
    assert!(!machine.transport.faulted());
}

#[test]
fn a_request_that_is_too_short_ends_the_device() {
    for chain in [
        vec![(REQUEST, 23, false), (ANSWER, 10, true)],
        vec![(REQUEST, 24, false), (ANSWER, 9, true)],
        vec![(REQUEST, 24, false)],
        vec![(ANSWER, 10, true)],
    ] {
        let mut machine = Machine::new();
        machine.driver.add(&chain).unwrap();
        machine.driver.kick();
        machine.transport.expect_fault();
    }
}

#[test]
fn an_answer_into_memory_that_its_own_request_takes_away_harms_nobody() {
    let mut machine = Machine::new();
    drop(machine.mem.target().set(4 * BLOCK).unwrap());
    assert!(wait(&machine.transport.config, PATIENCE), "it was told");
    assert_eq!(machine.ask(PLUG, START, 1), (ACK, 0));
    let mut request = [0; 24];
    request[..2].copy_from_slice(&UNPLUG.to_le_bytes());
    request[8..16].copy_from_slice(&START.to_le_bytes());
    request[16] = 1;
    let at = GuestAddress(REQUEST);
    machine.memory.write_slice(&request, at).unwrap();
    let chain = [(REQUEST, 24, false), (START, 10, true)];
    machine.driver.add(&chain).unwrap();
    machine.driver.kick();
    machine.transport.expect_fault();
    assert_eq!(machine.mem.target().plugged(), 0);
}

#[test]
fn blocks_are_as_a_model_says_after_any_requests() {
    let mut machine = Machine::new();
    let mut random = Random::new(0x0bad_cafe);
    let mut model = [false; 4];
    drop(machine.mem.target().set(3 * BLOCK).unwrap());
    for round in 0..2000 {
        let kind = random.below(4) as u16;
        let (first, count) = (random.below(5), random.below(3));
        let (kind_of_answer, _) = machine.ask(kind, START + first * BLOCK, count as u16);
        let range = first as usize..(first + count) as usize;
        let acked = kind_of_answer == ACK;
        match kind {
            PLUG if acked => model[range].fill(true),
            UNPLUG if acked => model[range].fill(false),
            UNPLUG_ALL => model.fill(false),
            _ => {}
        }
        for (block, plugged) in (0..).zip(model) {
            assert_eq!(machine.has(START + block * BLOCK), plugged, "round {round}");
        }
        let plugged = model.iter().filter(|plugged| **plugged).count() as u64;
        assert_eq!(machine.mem.target().plugged(), plugged * BLOCK);
        assert!(plugged <= 3);
    }
}
