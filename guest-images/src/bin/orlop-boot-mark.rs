//! A guest's process 1 for benchmarks: it says that user space is reached, and does nothing more. As another process it says so and ends.

use orlop_guest_images::boot_mark;

fn main() {
    boot_mark::give();
    while std::process::id() == 1 {
        std::thread::park();
    }
}
