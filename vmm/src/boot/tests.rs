use super::*;
use crate::devices::virtio::GuestMemory;

fn memory() -> GuestMemory {
    crate::memory::anonymous(&[(GuestAddress(0), 64 << 20)]).unwrap()
}

fn boot(kernel: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, kernel).unwrap();
    let config = KernelConfig {
        kernel: HostFile::Path(path),
        initramfs: None,
        cmdline: String::new(),
    };
    load(&memory(), &config, None, layout::ACPI)
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096], b"\x7fEL"] {
        let error = boot(bytes);
        assert!(
            error.contains("neither an ELF vmlinux nor an x86 bzImage"),
            "{error}"
        );
    }
}

#[test]
fn a_kernel_for_another_machine_is_refused_by_its_name() {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 183;
    assert!(boot(&elf).contains("another architecture (arm64)"));
    let mut image = vec![0; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    assert!(boot(&image).contains("another architecture (arm64)"));
}

#[test]
fn a_truncated_kernel_is_refused() {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    let error = boot(&elf);
    assert!(error.contains("is damaged or does not fit"), "{error}");
    let mut bz = vec![0; 0x300];
    bz[0x202..0x206].copy_from_slice(b"HdrS");
    let error = boot(&bz);
    assert!(error.contains("is damaged or does not fit"), "{error}");
}

#[test]
fn a_missing_kernel_and_a_directory_are_said_so() {
    for path in ["/nonexistent/vmlinux", "/"] {
        let config = KernelConfig {
            kernel: HostFile::Path(path.into()),
            initramfs: None,
            cmdline: String::new(),
        };
        let error = load(&memory(), &config, None, layout::ACPI)
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("cannot read kernel {path}"));
    }
}

#[test]
fn a_command_line_that_linux_would_cut_is_refused() {
    let cmdline = "x".repeat(layout::CMDLINE_MAX);
    assert!(matches!(
        write_cmdline(&memory(), &cmdline),
        Err(Error::CmdlineLength(2048))
    ));
    assert!(matches!(
        write_cmdline(&memory(), "a\0b"),
        Err(Error::CmdlineZero)
    ));
    write_cmdline(&memory(), &cmdline[1..]).unwrap();
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initramfs");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = load_initramfs(&memory(), &path.into(), GuestAddress(1 << 20)).unwrap_err();
    assert!(
        matches!(error, Error::InitramfsSize { memory: 64, .. }),
        "{error}"
    );
}

#[test]
fn a_file_that_was_handed_over_is_read_from_its_beginning_each_time() {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"content").unwrap();
    let given = HostFile::Given(std::os::fd::AsRawFd::as_raw_fd(&file));
    for _ in 0..2 {
        let mut content = String::new();
        open("kernel", &given)
            .unwrap()
            .read_to_string(&mut content)
            .unwrap();
        assert_eq!(content, "content");
    }
}
