//! What a VM's process makes of what the host gives it, before it has any thread.

use std::io;

/// Has all threads allocate from one heap. By default glibc gives threads heaps of their own, up to eight for each processor of the host, and
/// threads come and go with devices and guests' resets: each heap would grow to what any of them ever needed.
pub fn share_one_heap() {
    // SAFETY: no other thread is there yet, and a number is all that it takes.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        log::warn!("threads have heaps of their own");
    }
}

/// Allows as many open files as this process may have: each of a guest's vsock connections is one.
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one rlimit, which lives through the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads one rlimit, which lives through the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        let error = io::Error::last_os_error();
        log::warn!("the limit of open files cannot be raised: {error}");
    }
}
