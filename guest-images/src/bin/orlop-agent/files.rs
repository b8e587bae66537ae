//! What the guest's kernel remembers of files.

use std::{fs, io};

/// Has it forget what nobody uses: their content first, for a file whose content it has is not forgotten, and then the files
/// (`vm.drop_caches`, Documentation/admin-guide/sysctl/vm.rst).
///
/// # Errors
/// What the kernel says.
pub fn forget() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
}
