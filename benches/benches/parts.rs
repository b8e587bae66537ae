//! What the VMM's parts cost by themselves, without KVM: `cargo bench -p orlop-benches`.
//!
//! - *bus*: an access finds its device among as many as a guest may have;
//! - *msix*: a driver masks a vector and unmasks it again, as it does around each change of an interrupt's affinity;
//! - *queue*: a request of three descriptors is taken and given back, with and without the check whether an interrupt is wanted; and one of 254 pages
//!   that are not beside each other, whose memory is looked up;
//! - *loader*: a kernel of 16 MiB is loaded from a file that the host has in memory.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has nothing to say"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orlop_vmm::boot;
use orlop_vmm::bus::{Bus, Device};
use orlop_vmm::config::{HostFile, KernelConfig};
use orlop_vmm::devices::virtio::queue::{Layout, Queue};
use orlop_vmm::irq::{Error, Gsi, Msi, MsiMessage};
use orlop_vmm::memory::{self, GuestMemory, Sharing};
use orlop_vmm::pci::msix::{ENTRY_SIZE, Msix};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// A device that answers with what it was asked.
struct Echo;

impl Device for Echo {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn write(&self, _: u64, data: &[u8]) {
        black_box(data);
    }
}

fn bus(criterion: &mut Criterion) {
    const DEVICES: u64 = 32;
    let mut bus = Bus::new();
    for number in 0..DEVICES {
        bus.insert(number << 20, 0x1000, Arc::new(Echo)).unwrap();
    }
    let mut data = [0; 4];
    criterion.bench_function("bus: a read among 32 devices", |bencher| {
        bencher.iter(|| bus.read(black_box(17 << 20 | 8), &mut data));
    });
}

/// Routes that nobody has a VM for.
#[derive(Default)]
struct Nowhere(AtomicU32);

impl Msi for Nowhere {
    fn attach(&self, _: &EventFd, message: MsiMessage) -> Result<Gsi, Error> {
        black_box(message);
        Ok(Gsi::new(self.0.fetch_add(1, Ordering::Relaxed)))
    }

    fn update(&self, _: Gsi, message: MsiMessage) -> Result<(), Error> {
        black_box(message);
        Ok(())
    }

    fn detach(&self, _: &EventFd, _: Gsi) -> Result<(), Error> {
        Ok(())
    }

    fn vm_ends(&self) {}
}

fn msix(criterion: &mut Criterion) {
    const VECTORS: usize = 17;
    const ENABLE: u16 = 1 << 15;
    let mut msix = Msix::new(Arc::new(Nowhere::default()), VECTORS).unwrap();
    msix.control(ENABLE);
    let entry = 9 * ENTRY_SIZE;
    msix.write_table(entry, &0xfee0_0000_u64.to_le_bytes());
    let mut masked = 0_u32;
    criterion.bench_function("msix: a vector is masked or unmasked", |bencher| {
        bencher.iter(|| {
            masked ^= 1;
            msix.write_table(entry + 12, &masked.to_le_bytes());
        });
    });
}

/// A driver's side of a queue: one request of three descriptors, made available again and again.
struct Driver {
    memory: Arc<GuestMemory>,
    layout: Layout,
    available: u16,
}

/// VIRTQ_DESC_F_NEXT and VIRTQ_DESC_F_WRITE (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
/// See above.
const WRITE: u16 = 2;

impl Driver {
    const SIZE: u16 = 256;

    fn new() -> Self {
        let memory = memory::map("32M".parse().unwrap(), Sharing::Private).unwrap();
        let at = |offset: u64| GuestAddress(0x10_0000 + offset);
        let layout = Layout {
            size: Self::SIZE,
            descriptors: at(0),
            driver: at(0x2000),
            device: at(0x3000),
        };
        let driver = Driver {
            memory,
            layout,
            available: 0,
        };
        // As a read of a block device has them: header, data, status.
        let descriptors = [
            (0x20_0000_u64, 16_u32, NEXT, 1_u16),
            (0x30_0000, 4096, NEXT | WRITE, 2),
            (0x20_1000, 1, WRITE, 0),
        ];
        for (number, descriptor) in (0..).zip(descriptors) {
            driver.describe(at(16 * number), descriptor);
        }
        driver
    }

    /// Has the request be a read of so many pages, which stand in a table of their own.
    fn read_pages(&self, pages: u64) {
        const TABLE: u64 = 0x18_0000;
        const INDIRECT: u16 = 4;
        let page = |number| (0x40_0000 + number * 0x2000, 4096, WRITE);
        let entries = [(0x20_0000, 16, 0)].into_iter();
        let entries = entries.chain((0..pages).map(page));
        let entries = entries.chain([(0x20_1000, 1, WRITE)]);
        for (number, (address, length, flags)) in (0..).zip(entries) {
            let next = if number > pages { 0 } else { NEXT };
            let at = GuestAddress(TABLE + 16 * number);
            self.describe(at, (address, length, flags | next, number as u16 + 1));
        }
        let length = 16 * (pages as u32 + 2);
        self.describe(self.layout.descriptors, (TABLE, length, INDIRECT, 0));
    }

    /// Writes a descriptor: the address and the length of its buffer, its flags, and which comes next.
    fn describe(&self, at: GuestAddress, (address, length, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_obj(bytes, at).unwrap();
    }

    fn queue(&self) -> Queue {
        Queue::new(Self::SIZE, self.layout, false, &self.memory).unwrap()
    }

    /// The ring names head 0 everywhere, so only its index moves.
    fn make_available(&mut self) {
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.layout.driver.0 + 2);
        self.memory
            .store(self.available.to_le(), index, Ordering::Release)
            .unwrap();
    }
}

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(1));
    for (name, asks) in [
        ("a request there and back", false),
        ("the same, and whether an interrupt is wanted", true),
    ] {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                driver.make_available();
                let chain = queue.pop(&driver.memory).unwrap().unwrap();
                queue.complete(&driver.memory, chain.head(), 4097).unwrap();
                if asks {
                    black_box(queue.needs_interrupt(&driver.memory).unwrap());
                }
            });
        });
    }
    const PAGES: u64 = 254;
    let mut driver = Driver::new();
    driver.read_pages(PAGES);
    let mut queue = driver.queue();
    group.bench_function("a read of 254 pages", |bencher| {
        bencher.iter(|| {
            driver.make_available();
            let chain = queue.pop(&driver.memory).unwrap().unwrap();
            let all = chain.writable_len() - 1;
            black_box(chain.writable_slices(&driver.memory, 0, all).unwrap());
            queue.complete(&driver.memory, chain.head(), 1).unwrap();
        });
    });
    group.finish();
}

/// An ELF kernel with a PVH entry point, and so many bytes to load at 16 MiB.
fn kernel(size: usize) -> Vec<u8> {
    const BASE: u64 = 16 << 20;
    const HEADERS: usize = 64 + 2 * 56;
    const NOTE: usize = 24;
    let content = HEADERS + NOTE;
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable for x86-64.
    for half in [2_u16, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1_u32.to_le_bytes());
    // Its entry, its program headers, its sections.
    for word in [BASE, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    // PT_NOTE and PT_LOAD: type, flags; offset, virtual and physical address, sizes in the file and in memory, alignment.
    let headers = [
        (4_u32, HEADERS as u64, NOTE as u64, 4_u64),
        (1, content as u64, size as u64, 4096),
    ];
    for (kind, offset, length, alignment) in headers {
        image.extend(kind.to_le_bytes());
        image.extend(7_u32.to_le_bytes());
        for word in [offset, BASE, BASE, length, length, alignment] {
            image.extend(word.to_le_bytes());
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY: the sizes of name and value, the kind, then both.
    for word in [4_u32, 8, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(BASE.to_le_bytes());
    image.resize(content + size, 0x90);
    image
}

fn loader(criterion: &mut Criterion) {
    const SIZE: usize = 16 << 20;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kernel(SIZE)).unwrap();
    let config = KernelConfig {
        kernel: HostFile::from(file.path().to_owned()),
        initramfs: None,
        cmdline: "quiet".into(),
    };
    let memory = memory::map("64M".parse().unwrap(), Sharing::Private).unwrap();
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Bytes(SIZE as u64));
    group.sample_size(20);
    group.bench_function("a kernel of 16 MiB", |bencher| {
        bencher.iter(|| boot::load(&memory, &config, None, GuestAddress(0xe_0000)).unwrap());
    });
    group.finish();
}

criterion_group!(parts, bus, msix, queue, loader);
criterion_main!(parts);
