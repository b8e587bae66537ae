//! Seccomp: which system calls a container's processes may make (seccomp(2)).
//!
//! [`profile`] checks what the OCI spec says, [`program`] makes it a program for the kernel, and [`Filter::load`] hands it over, as the
//! very last thing before the user's program is executed: so a profile need allow no more than that one call of what it takes to make
//! a container. The kernel wants either `no_new_privs` or CAP_SYS_ADMIN for it; the room of containers'
//! specs says how a process without the one comes by the other.

mod profile;
mod program;
mod syscalls;

use std::io;

use oci_spec::runtime::LinuxSeccomp;

use self::profile::Profile;

/// Why a profile cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// An action that takes a process outside.
    #[error(
        "the seccomp profile uses SCMP_ACT_{0}, for which somebody outside of the guest would have to answer"
    )]
    Action(&'static str),
    /// An error number that no system call returns.
    #[error("the seccomp profile returns the error number {0}, and 4095 is the largest there is")]
    Errno(u32),
    /// An error number where none is returned.
    #[error("the seccomp profile has an errnoRet beside an action that returns no error")]
    NoErrno,
    /// A rule for nothing.
    #[error("the seccomp profile has an entry that names no system call")]
    NoNames,
    /// An argument that no system call has.
    #[error(
        "the seccomp profile looks at argument {0} of a system call, which has those from 0 to 5"
    )]
    Argument(usize),
    /// Too many rules.
    #[error("the seccomp profile takes {0} instructions, and the kernel takes 4096")]
    TooLong(usize),
}

/// A profile that the kernel can be given.
#[derive(Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Makes a filter of a profile.
    ///
    /// # Errors
    /// When the profile asks for what a guest does not do.
    pub fn of(seccomp: &LinuxSeccomp) -> Result<Self, SeccompError> {
        let profile = Profile::of(seccomp)?;
        Ok(Self {
            program: program::program(&profile)?,
            flags: profile.flags,
        })
    }

    /// Puts the calling thread behind the filter for good, and all that comes of it.
    ///
    /// # Errors
    /// `EACCES` without `no_new_privs` and CAP_SYS_ADMIN.
    pub fn load(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads `program` and the instructions that it points to, which live through the call, and keeps a copy.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                &raw const program,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests;
