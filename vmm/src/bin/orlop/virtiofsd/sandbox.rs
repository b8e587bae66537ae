//! What a virtiofsd can be locked into: as much as this user may do.

use std::io;

/// The ways that virtiofsd has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Namespaces of its own for mounts, processes and network, and the shared directory for a root.
    Namespace,
    /// The shared directory for a root. It takes root, but less of it.
    Chroot,
    /// None: it sees what its user sees. Its own seccomp filter is there in any case.
    None,
}

impl Sandbox {
    /// The strongest that this process may make.
    pub fn strongest() -> Self {
        // SAFETY: geteuid takes nothing and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        let mut namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
        if !is_root {
            namespaces |= libc::CLONE_NEWUSER;
        }
        if succeeds(|| enter(namespaces)) {
            Sandbox::Namespace
        } else if is_root && succeeds(change_root) {
            Sandbox::Chroot
        } else {
            Sandbox::None
        }
    }

    /// What virtiofsd calls it.
    pub fn name(self) -> &'static str {
        match self {
            Sandbox::Namespace => "namespace",
            Sandbox::Chroot => "chroot",
            Sandbox::None => "none",
        }
    }
}

/// Whether something succeeds in a process of its own. What is done there may make system calls and nothing else: the process is a
/// copy of one that may have threads.
fn succeeds(what: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child makes system calls only, and ends without going back to what this process was doing.
    match unsafe { libc::fork() } {
        -1 => false,
        0 => {
            let status = if what() { 0 } else { 1 };
            // SAFETY: as above.
            unsafe { libc::_exit(status) }
        }
        child => ends_well(child),
    }
}

fn ends_well(child: libc::pid_t) -> bool {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives through the call; the child is ours, and nobody else waits for it.
        match unsafe { libc::waitpid(child, &raw mut status, 0) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            id => return id == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        }
    }
}

/// The first steps of virtiofsd's own way into namespaces, which are those that fail where somebody forbids them.
fn enter(namespaces: libc::c_int) -> bool {
    // SAFETY: it takes a number, and changes this process only.
    if unsafe { libc::unshare(namespaces) } != 0 {
        return false;
    }
    // The child is the first process of the new namespace, in which alone its /proc may be mounted.
    succeeds(|| {
        let flags = libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOSUID | libc::MS_RELATIME;
        let (proc, slave) = (c"proc".as_ptr(), libc::MS_SLAVE | libc::MS_REC);
        let none = std::ptr::null();
        // SAFETY: all strings are C strings or absent, as the call allows. The mounts are of the namespace that ends with this process.
        unsafe {
            libc::mount(none, c"/".as_ptr(), none, slave, none.cast()) == 0
                && libc::mount(proc, c"/proc".as_ptr(), proc, flags, none.cast()) == 0
        }
    })
}

fn change_root() -> bool {
    // SAFETY: it takes a C string, and changes this process only.
    unsafe { libc::chroot(c"/".as_ptr()) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_changes_nothing_here() {
        let before = std::fs::read_link("/proc/self/ns/mnt").unwrap();
        let strongest = Sandbox::strongest();
        println!("{strongest:?}");
        assert_eq!(strongest, Sandbox::strongest());
        assert_eq!(std::fs::read_link("/proc/self/ns/mnt").unwrap(), before);
        assert!(succeeds(|| true) && !succeeds(|| false));
    }
}
