//! Builds of a source tree that is a few lines long: the real make, and what goes wrong around it.

use std::fs;
use std::process::Command;

use super::*;
use crate::elf::tests::kernel_with_pvh_note;

/// A Makefile with the four targets of Linux' own that a build uses. Its configuration is the fragment without `CONFIG_GONE`.
const MAKEFILE: &str = "\
allnoconfig:
\t@test \"$(ARCH)\" = x86_64 && test -z \"$$SECRET\"
\t@grep -v CONFIG_GONE $$KCONFIG_ALLCONFIG > $(O)/.config
olddefconfig:
\t@echo CONFIG_EXTRA=y >> $(O)/.config
vmlinux:
\t@echo '  CC      init/main.o'
\t@cp kernel $(O)/vmlinux
bzImage: vmlinux
\t@mkdir -p $(O)/arch/x86/boot
\t@cp kernel $(O)/arch/x86/boot/bzImage
";

struct Tree(tempfile::TempDir);

impl Tree {
    /// None, with a word about it, where there is no make.
    fn new(makefile: &str) -> Option<Self> {
        if Command::new("make").arg("--version").output().is_err() {
            eprintln!("skipped: this machine has no make");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("Makefile"), makefile).unwrap();
        fs::write(source.join("Kconfig"), "").unwrap();
        fs::write(source.join("kernel"), kernel_with_pvh_note()).unwrap();
        Some(Self(dir))
    }

    fn output(&self) -> PathBuf {
        self.0.path().join("made/here")
    }

    fn build(&self, fragment: &str) -> (Vec<String>, Result<(), Error>) {
        let mut reports = Vec::new();
        let result = Build {
            source: &self.0.path().join("source"),
            fragment,
            output: &self.output(),
            log: &self.0.path().join("log"),
            jobs: 2,
        }
        .run(|report| {
            reports.push(report.to_owned());
            Ok(())
        });
        (reports, result)
    }

    fn made(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.output())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_no_source_tree_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let build = Build {
        source: dir.path(),
        fragment: "CONFIG_A=y\n",
        output: dir.path(),
        log: &dir.path().join("log"),
        jobs: 1,
    };
    let error = build.run(|_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("it has no Makefile"), "{error}");
}

#[test]
fn a_lost_option_is_named_and_nothing_is_compiled() {
    let Some(tree) = Tree::new(MAKEFILE) else {
        return;
    };
    let (reports, result) =
        tree.build("CONFIG_A=y\nCONFIG_GONE=y\nCONFIG_GONE_TOO=2\n# CONFIG_EXTRA is not set\n");
    let error = result.unwrap_err().to_string();
    for part in [
        "3 of the options",
        "CONFIG_GONE=y (it is not set), CONFIG_GONE_TOO=2 (it is not set), CONFIG_EXTRA not set (it is y)",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(reports, ["configuring the kernel"]);
    assert!(tree.made().is_empty(), "{:?}", tree.made());
}

#[test]
fn a_failed_compilation_is_told_and_leaves_the_kernel_that_was_there() {
    let makefile = MAKEFILE.replace("@cp kernel $(O)/vmlinux", "@echo main.c:1: no; exit 1");
    let Some(tree) = Tree::new(&makefile) else {
        return;
    };
    fs::create_dir_all(tree.output()).unwrap();
    fs::write(tree.output().join(VMLINUX), "older").unwrap();
    let (_, result) = tree.build("CONFIG_A=y\n");
    let error = result.unwrap_err().to_string();
    for part in [
        "`make -C",
        "--jobs=2 vmlinux bzImage` failed",
        "main.c:1: no",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(
        fs::read_to_string(tree.0.path().join("log"))
            .unwrap()
            .contains("main.c:1: no")
    );
    assert_eq!(tree.made(), [VMLINUX]);
    assert_eq!(fs::read(tree.output().join(VMLINUX)).unwrap(), b"older");
}

#[test]
fn a_kernel_that_cannot_be_entered_is_refused() {
    let Some(tree) = Tree::new(MAKEFILE) else {
        return;
    };
    if Command::new("strip").arg("--version").output().is_err() {
        eprintln!("skipped: this machine has no strip");
        return;
    }
    // A real ELF file, but no kernel.
    fs::copy(
        std::env::current_exe().unwrap(),
        tree.0.path().join("source/kernel"),
    )
    .unwrap();
    let (_, result) = tree.build("CONFIG_A=y\n");
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Kernel(elf::Error::NoPvh)), "{error}");
    assert!(tree.made().is_empty(), "{:?}", tree.made());
}
