//! The program's own code, most of which is needed once: to read the command line, to load the guest, to build the machine.

use std::io;

/// Lets go of all pages of the program's code and constants. Those that are used again come back from the page cache, sixteen at once;
/// the others are the host's to reclaim, and no part of this process any more.
///
/// # Errors
/// When the system does not take the advice.
pub fn let_go() -> io::Result<()> {
    let mut result = 0;
    // SAFETY: the callback is called before this returns, with `result`, which lives as long.
    let failed = unsafe { libc::dl_iterate_phdr(Some(let_go_of), (&raw mut result).cast()) };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(result)),
    }
}

/// Lets go of the pages of one program or library; anything but 0 ends the list.
extern "C" fn let_go_of(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    result: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library passes an object that lives through the call, with as many program headers as it says.
    let (base, headers) = unsafe {
        let object = &*object;
        let count = usize::from(object.dlpi_phnum);
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, count);
        (object.dlpi_addr, headers)
    };
    // What may be written holds what was written, and relocations.
    let read_only = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    for header in headers.iter().filter(read_only) {
        const PAGE: u64 = 4096;
        let start = (base + header.p_vaddr).next_multiple_of(PAGE);
        let end = (base + header.p_vaddr + header.p_memsz) & !(PAGE - 1);
        let length = end.saturating_sub(start) as usize;
        // SAFETY: whole pages of a mapping of a file that nobody writes to: they are read from the file again when they are touched.
        if unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) } != 0 {
            // SAFETY: `result` is the number that `let_go` passed.
            unsafe {
                *result.cast::<libc::c_int>() = io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EINVAL)
            };
            return 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The memory of this process that files are behind, in KiB.
    fn of_files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let number = line.unwrap().trim().strip_suffix(" kB").unwrap();
        number.parse().unwrap()
    }

    #[test]
    fn the_program_goes_on_with_less_of_its_code() {
        let before = of_files();
        let_go().unwrap();
        let after = of_files();
        assert!(after < before, "{after} KiB, after {before}");
    }
}
