//! A guest's process 1 for benchmarks: it says that user space is reached, and does nothing more.

use orlop_guest_images::boot_mark;

fn main() -> ! {
    boot_mark::give();
    loop {
        std::thread::park();
    }
}
