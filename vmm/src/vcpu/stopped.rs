//! Where a vCPU stood that crashed, or that KVM could not go on with: what whoever looks into it wants to know first.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// Why KVM does not go on, of a vCPU that has just left the guest with `KVM_EXIT_INTERNAL_ERROR` (KVM's API, 5).
pub fn by_internal_error(fd: &mut VcpuFd) -> String {
    let told = internal_error(fd.get_kvm_run());
    format!("KVM stopped the guest: {told}; {}", place(fd))
}

/// The registers that say what a vCPU was about.
pub fn place(fd: &VcpuFd) -> String {
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x}",
            regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
        ),
        (Err(error), _) | (_, Err(error)) => format!("its registers cannot be read: {error}"),
    }
}

fn internal_error(run: &kvm_run) -> String {
    // SAFETY: the exit's reason is KVM_EXIT_INTERNAL_ERROR, with which KVM fills this member; all of its bits are numbers.
    let error = unsafe { run.__bindgen_anon_1.internal };
    let kind = match error.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction cannot be emulated",
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions came at once",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the processor left it for an unknown reason",
        _ => "internal error",
    };
    let said = error.data.iter().take(error.ndata as usize);
    let said: Vec<_> = said.map(|word| format!("{word:#x}")).collect();
    format!("{kind} ({}: {})", error.suberror, said.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_is_told_with_all_that_kvm_says_and_no_more() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
        run.__bindgen_anon_1.internal.ndata = 2;
        run.__bindgen_anon_1.internal.data = [0x11; 16];
        let told = internal_error(&run);
        assert_eq!(told, "an event could not be delivered (3: 0x11 0x11)");
        run.__bindgen_anon_1.internal.suberror = 77;
        run.__bindgen_anon_1.internal.ndata = u32::MAX;
        let told = internal_error(&run);
        assert!(told.starts_with("internal error (77: 0x11 "), "{told}");
        assert_eq!(told.matches("0x11").count(), 16);
    }
}
