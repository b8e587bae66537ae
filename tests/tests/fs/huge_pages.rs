//! Memory of huge pages, with which a VM shares its directories as well.

use super::*;

/// The host's huge pages of 2 MiB: none but those that a story makes.
struct Pool;

impl Pool {
    /// With so many pages; `None`, said aloud, where the host has no room for them.
    fn new(pages: u64) -> Option<Self> {
        fs::write(Self::file("nr_hugepages"), pages.to_string()).unwrap();
        let pool = Pool;
        if pool.number("nr_hugepages") < pages {
            stories::skip("this host has no room for huge pages");
            return None;
        }
        Some(pool)
    }

    fn file(name: &str) -> PathBuf {
        Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").join(name)
    }

    fn number(&self, name: &str) -> u64 {
        let text = fs::read_to_string(Self::file(name)).unwrap();
        text.trim().parse().unwrap()
    }

    /// Pages that somebody has, and pages that nobody may have but who has reserved them.
    fn taken(&self) -> (u64, u64) {
        let free = self.number("free_hugepages");
        (
            self.number("nr_hugepages") - free,
            self.number("resv_hugepages"),
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(Self::file("nr_hugepages"), "0");
    }
}

#[test]
fn huge_pages_are_the_vm_s_from_its_start_to_its_end() {
    let Some(stage) = stage() else { return };
    let Some(pool) = Pool::new(64) else { return };
    let work = tempfile::tempdir().unwrap();
    // Not one page is to spare: the guest's second life has those of its first, which virtiofsd had mapped as well.
    let script = "load virtiofs; load virtio_balloon; mkdir /shared; mount -t virtiofs work /shared; \
                  echo life >>/shared/lives; sync; cat /shared/lives | wc -l; \
                  [ $(cat /shared/lives | wc -l) = 1 ] && reboot -f; \
                  echo waiting; until [ -e /shared/go ]; do sleep 1; done; umount /shared; poweroff -f";
    let vm = Vm::start(
        Kernel::Vmlinux,
        script,
        &[
            "--memory",
            "128M,hugepages=2M",
            "--fs",
            &share("work", work.path()),
        ],
    );
    vm.says("waiting");
    let (had, reserved) = pool.taken();
    println!("{had} pages are had, and {reserved} reserved");
    assert_eq!(had + reserved, 64);
    assert!(had > 8, "{had}");
    let inspected = vm.orlop("inspect", &[]);
    let line = "128 MiB, in huge pages of 2 MiB";
    assert!(inspected.output().contains(line), "{inspected:?}");
    let balloon = vm.orlop("balloon", &["32M"]);
    assert!(balloon.error().contains("in huge pages"), "{balloon:?}");

    // Nothing is left for another.
    let guest = Guest::new(Kernel::Vmlinux, "poweroff -f");
    let refused = guest.run_with(&["--memory", "64M,hugepages=2M"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    let error = refused.error();
    assert!(
        error.contains("needs 32 huge pages of 2 MiB, and 0 are free"),
        "{error}"
    );
    let advice = "echo 96 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    assert!(error.contains(advice), "{error}");

    File::create(work.path().join("go")).unwrap();
    let said = vm.ends(LIMIT);
    assert!(said.contains("1\r\n") && said.contains("2\r\n"), "{said}");
    assert_eq!(pool.taken(), (0, 0), "all are free again");
    drop((guest, pool, work));
    stage.leaves_nothing();
}
