//! The end of the guest.

use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};

use crate::console;

/// Powers the guest off. Returns only when the kernel refuses.
pub fn off() {
    nix::unistd::sync();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    console::say(&format!("cannot power off: {}", errno.desc()));
}

/// Has Ctrl-Alt-Del come to the agent as a signal, rather than reset the guest.
pub fn keep_to_ourselves() {
    let _ = set_cad_enabled(false);
}
