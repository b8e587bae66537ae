//! What is in a shared directory is the same for the guest and its host.

use super::*;

#[test]
fn a_source_tree_is_compiled_in_the_guest_as_on_its_host() {
    let Some(stage) = stage() else { return };
    if stories::size(0, 1) == 0 {
        stories::skip(
            "an emulated guest compiles for minutes: `cargo testbed test --full fs` has it do so",
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path();
    copy(
        &build::source().join("tests/hostile-guest"),
        &work.join("source"),
    );
    // The compiler itself, not what chooses one.
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = String::from_utf8(sysroot.unwrap().stdout).unwrap();
    let compiler = Path::new(sysroot.trim()).join("bin");
    let compile = |target: &str| {
        format!(
            "cd {work}/source && export PATH={compiler}:$PATH CARGO_HOME=/tmp/cargo CARGO_INCREMENTAL=0 && \
             cargo build --release --locked --offline --target-dir {work}/{target} && echo compiled",
            work = work.display(),
            compiler = compiler.display()
        )
    };
    let on_host = Command::new("sh").args(["-c", &compile("host")]).output();
    let on_host = on_host.unwrap();
    assert!(on_host.status.success(), "{on_host:?}");

    let script = with_root_of_host(work, &compile("guest"));
    let vm = Vm::start(
        Kernel::Own,
        &script,
        &[
            "--memory",
            "1G",
            "--fs",
            &format!("{},readonly", share("root", Path::new("/"))),
            "--fs",
            &share("work", work),
        ],
    );
    let begin = Instant::now();
    let said = vm.ends(LONG);
    println!("compiled in the guest in {:.0?}", begin.elapsed());
    assert!(said.contains("compiled\r\n"), "{said}");
    let program = |target: &str| work.join(target).join("release/hostile-guest");
    assert_eq!(sha256(&program("guest")), sha256(&program("host")));
    drop(directory);
    stage.leaves_nothing();
}

#[test]
fn fsx_finds_no_fault() {
    let Some(stage) = stage() else { return };
    /// How often each kind of operation comes.
    const CONFIG: &str = "[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
                          truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 1\npunch_hole = 2\nsendfile = 1\n\
                          posix_fadvise = 1\ncopy_file_range = 2\n";
    let operations = stories::size(1000, 3000);
    let work = tempfile::tempdir().unwrap();
    fs::write(work.path().join("config"), CONFIG).unwrap();
    let script = format!(
        "cd {} && {} -f config -N {operations} -S 7 -P /tmp file && echo no fault || echo fsx failed",
        work.path().display(),
        Cache::open().unwrap().fsx().display()
    );
    for kernel in [Kernel::Vmlinux, Kernel::Own] {
        let vm = Vm::start(
            kernel,
            &with_root_of_host(work.path(), &script),
            &[
                "--fs",
                &format!("{},readonly", share("root", Path::new("/"))),
                "--fs",
                &share("work", work.path()),
            ],
        );
        let said = vm.ends(LONG);
        assert!(said.contains("no fault\r\n"), "{kernel:?}: {said}");
        assert!(fs::metadata(work.path().join("file")).is_ok());
    }
    drop(work);
    stage.leaves_nothing();
}

/// Gives a program the file capability to change files' owners.
fn allow_chown(program: &Path) {
    // struct vfs_ns_cap_data of revision 2: the revision and that all of it is effective; permitted and inheritable, 32 each; the same
    // for the capabilities above.
    let words: [u32; 5] = [0x0200_0001, 1, 0, 0, 0];
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let path = std::ffi::CString::new(program.as_os_str().as_encoded_bytes()).unwrap();
    let name = c"security.capability";
    // SAFETY: the strings end with zeros, and the bytes are as many as is said.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn both_sides_see_what_the_other_does() {
    let Some(stage) = stage() else { return };
    let (work, fixed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| work.path().join(name);
    fs::write(at("from host"), "of the host").unwrap();
    fs::write(fixed.path().join("fixed"), "fixed").unwrap();
    fs::copy("/bin/busybox", at("busybox")).unwrap();
    allow_chown(&at("busybox"));
    let place = work.path().display();
    // What is done as another user shows that extended attributes are there: a file capability is one.
    let script = format!(
        "load virtiofs; mkdir /fixed; mount -t virtiofs fixed /fixed; cat /fixed/fixed; echo; \
         touch /fixed/new 2>/dev/null || rm /fixed/fixed 2>/dev/null || echo x 2>/dev/null >/fixed/fixed || echo nothing is written; \
         mkdir /shared; mount -t virtiofs work /shared; cd /shared; cat from\\ host; echo; \
         mkdir many; for n in $(seq {FILES}); do echo $n >many/$n; done; ls many | wc -l; \
         echo linked >first; ln first second; ln -s first symlink; mkfifo fifo; \
         echo old >old; echo new >new; mv new old; mv many/1 moved; rm many/2; chmod 4711 first; \
         mkdir full; touch full/x; rmdir full 2>/dev/null || echo not empty; \
         cd /; umount /shared; mount -t virtiofs work /shared; \
         cat /shared/first /shared/moved >/dev/null; ls /shared/many | wc -l; echo the host may look; \
         until [ \"$(cat /shared/first)\" = changed ]; do sleep 1; done; \
         until [ ! -e /shared/moved ]; do sleep 1; done; ls /shared/many | wc -l; \
         mkdir /host; mount -t virtiofs -o ro root /host; mount --bind /shared /host{place}; \
         chroot /host chroot --userspec=1000:1000 / {place}/busybox chown 1000 {place}/old; \
         umount /host{place}; umount /shared; echo done; poweroff -f"
    );
    let vm = Vm::start(
        Kernel::Vmlinux,
        &script,
        &[
            "--fs",
            &format!("{},readonly", share("fixed", fixed.path())),
            "--fs",
            &share("work", work.path()),
            "--fs",
            &format!("{},readonly", share("root", Path::new("/"))),
        ],
    );
    vm.says("the host may look");
    let said = vm.said();
    for line in [
        "fixed",
        "nothing is written",
        "of the host",
        "1000",
        "not empty",
        "998",
    ] {
        assert!(
            said.contains(&format!("{line}\r\n")),
            "{line} is not in {said}"
        );
    }
    assert_eq!(
        fs::read_to_string(fixed.path().join("fixed")).unwrap(),
        "fixed"
    );
    assert_eq!(fs::read_dir(fixed.path()).unwrap().count(), 1);
    for number in 3..=FILES {
        let text = fs::read_to_string(at(&format!("many/{number}"))).unwrap();
        assert_eq!(text, format!("{number}\n"));
    }
    assert_eq!(fs::read_dir(at("many")).unwrap().count(), FILES - 2);
    assert_eq!(fs::read_to_string(at("moved")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(at("old")).unwrap(), "new\n");
    assert!(!at("new").exists());
    let (first, second) = (
        fs::metadata(at("first")).unwrap(),
        fs::metadata(at("second")).unwrap(),
    );
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    assert_eq!(first.permissions().mode() & 0o7777, 0o4711);
    assert_eq!(fs::read_link(at("symlink")).unwrap(), Path::new("first"));
    assert!(fs::metadata(at("fifo")).unwrap().file_type().is_fifo());

    fs::write(at("first"), "changed").unwrap();
    fs::write(at("many/another"), "").unwrap();
    fs::remove_file(at("moved")).unwrap();
    let said = vm.ends(LIMIT);
    assert!(said.contains("999\r\n"), "{said}");
    assert!(said.contains("done\r\n"), "{said}");
    assert_eq!(fs::metadata(at("old")).unwrap().uid(), 1000, "{said}");
    drop((work, fixed));
    stage.leaves_nothing();
}
