//! What is done to the VM.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use orlop_guest_images::noise::Noise;
use orlop_proto::vmm::v1::{
    AddDiskRequest, AddNetRequest, DescribeRequest, KillRequest, PauseRequest, RemoveDeviceRequest,
    ResetRequest, ResumeRequest, SetBalloonRequest, WaitOperationRequest,
};
use std::sync::atomic::Ordering;

use crate::Random;
use crate::guest::held::{Held, by_mapping};
use crate::guest::peer::Vm;
use crate::guest::tap::Tap;
use crate::guest::{COMMAND_LINE, Kernel, LIMIT, control};
use crate::load::{self, DISK, Load};

/// As much as the balloon may take of 256 MiB, in MiB.
const BALLOON: u64 = 96;

/// What the guest's resets are counted by.
const RESET: &str = "reset";

/// A disk that came while the guest ran.
struct Disk {
    address: String,
    serial: String,
    /// What it holds.
    seed: u64,
}

/// A card that came while the guest ran.
struct Card {
    address: String,
    mac: String,
    tap: Tap,
}

/// The VM, what it has, and what was done to it.
pub struct Deeds {
    random: Random,
    vm: Vm,
    tap: Tap,
    load: Load,
    disk: Option<Disk>,
    card: Option<Card>,
    /// So many devices have come.
    came: u64,
    done: BTreeMap<&'static str, u64>,
}

impl Deeds {
    pub fn begin(random: Random) -> Self {
        let tap = Tap::new(1);
        let up = tap.bring_up();
        // What its kernel warns of is to be seen.
        let command_line = COMMAND_LINE.replace("quiet", "loglevel=5");
        let script = format!("load virtio_blk; {up}");
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(DISK).unwrap();
        let vm = Vm::start(
            Kernel::Own,
            &script,
            &[
                "--cmdline",
                &command_line,
                "--disk",
                &format!("path={}", image.path().display()),
                "--net",
                &format!("tap={}", tap.name),
            ],
        );
        // The VMM has it open, which is enough; but another life of the guest's opens nothing anew.
        drop(image);
        let load = Load::begin(&vm.guest.path("vsock"), &tap.guest());
        Deeds {
            random,
            vm,
            tap,
            load,
            disk: None,
            card: None,
            came: 0,
            done: BTreeMap::new(),
        }
    }

    /// Each thing once, so that everything is there that stays.
    pub fn everything_once(&mut self) {
        self.pause();
        self.disk();
        self.card();
        self.balloon();
        self.reset();
        self.disk();
        self.card();
    }

    /// One thing, at random.
    pub fn next(&mut self) {
        match self.random.below(12) {
            0..3 => self.pause(),
            3..6 => self.disk(),
            6..8 => self.card(),
            8..11 => self.balloon(),
            _ => self.reset(),
        }
        let while_ = self.random.below(1000);
        thread::sleep(Duration::from_millis(while_));
        self.is_well();
    }

    /// Fails if anything has failed in the load, or the guest has begun another life by itself, which takes the load with it: so with what the
    /// guest has said.
    fn is_well(&self) {
        let expected = 1 + self.done.get(RESET).copied().unwrap_or(0);
        let is_well = self.load.is_well();
        if !is_well {
            // A guest that has crashed is heard of only when it has booted again.
            thread::sleep(Duration::from_secs(20));
        }
        let lives = self.lives();
        assert!(
            lives == expected && is_well,
            "{lives} lives of {expected}, and see above: {}",
            self.vm.said()
        );
    }

    /// How often the guest has booted.
    fn lives(&self) -> u64 {
        let said = self.vm.said();
        said.matches("the peer listens").count() as u64
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
        let number: u64 = self.done.values().sum();
        println!("{number}: {what}");
    }

    fn pause(&mut self) {
        self.count("pause");
        let socket = self.vm.guest.path("control");
        control(&socket, async |mut vm| vm.pause(PauseRequest {}).await).unwrap();
        thread::sleep(Duration::from_millis(self.random.below(3000)));
        control(&socket, async |mut vm| vm.resume(ResumeRequest {}).await).unwrap();
    }

    /// Gives the guest a disk, or takes it back.
    fn disk(&mut self) {
        match self.disk.take() {
            None => {
                self.count("disk comes");
                self.disk = Some(self.add_disk());
                self.use_disk();
            }
            Some(disk) => {
                self.count("disk goes");
                self.remove(&disk.address);
                let bytes = fs::read(self.vm.guest.path("hot")).unwrap();
                let differs = Noise::new(disk.seed).first_difference(0, &bytes);
                assert_eq!(differs, None, "what the guest wrote to its disk");
            }
        }
    }

    fn add_disk(&mut self) -> Disk {
        self.came += 1;
        let (seed, serial) = (1000 + self.came, format!("hot{}", self.came));
        let path = self.vm.guest.path("hot");
        let mut bytes = vec![0; DISK as usize];
        Noise::new(seed).fill(0, &mut bytes);
        fs::write(&path, bytes).unwrap();
        let request = AddDiskRequest {
            path: path.to_str().unwrap().into(),
            serial: serial.clone(),
            ..Default::default()
        };
        let added = control(&self.vm.guest.path("control"), async |mut vm| {
            vm.add_disk(request).await
        });
        let address = added.unwrap().address;
        Disk {
            address,
            serial,
            seed,
        }
    }

    /// The guest reads the disk and writes to it.
    fn use_disk(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        let name = find(
            &self.vm,
            &format!(
                "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {} ] && echo ${{d##*/}}; done; true",
                disk.serial
            ),
        );
        let new = disk.seed + 500_000;
        self.vm
            .does(&format!("disk /dev/{name} {} {new} {DISK}", disk.seed));
        disk.seed = new;
    }

    /// Gives the guest a card, or takes it back.
    fn card(&mut self) {
        match self.card.take() {
            None => {
                self.count("card comes");
                self.card = Some(self.add_card());
                self.use_card();
            }
            Some(card) => {
                self.count("card goes");
                self.remove(&card.address);
            }
        }
    }

    fn add_card(&mut self) -> Card {
        self.came += 1;
        let tap = Tap::new(1);
        let mac = format!(
            "02:00:00:00:{:02x}:{:02x}",
            self.came >> 8 & 0xff,
            self.came & 0xff
        );
        let request = AddNetRequest {
            tap: tap.name.clone(),
            mac: mac.clone(),
            ..Default::default()
        };
        let added = control(&self.vm.guest.path("control"), async |mut vm| {
            vm.add_net(request).await
        });
        let address = added.unwrap().address;
        Card { address, mac, tap }
    }

    /// The guest gives the card its address, and bytes pass.
    fn use_card(&mut self) {
        let Some(card) = &self.card else { return };
        let name = find(
            &self.vm,
            &format!(
                "for n in /sys/class/net/*; do [ \"$(cat $n/address)\" = {} ] && echo ${{n##*/}}; done; true",
                card.mac
            ),
        );
        let guest = card.tap.guest();
        self.vm.does(&format!(
            "run ip addr add {guest}/24 dev {name} && ip link set {name} up"
        ));
        load::net(&guest, 2000 + self.came).unwrap();
    }

    fn remove(&self, address: &str) {
        let request = RemoveDeviceRequest {
            address: address.into(),
            timeout_ms: LIMIT.as_millis().try_into().unwrap(),
        };
        control(&self.vm.guest.path("control"), async |mut vm| {
            let id = vm.remove_device(request).await?.into_inner().id;
            vm.wait_operation(WaitOperationRequest { id }).await
        })
        .unwrap();
    }

    fn balloon(&mut self) {
        self.count("balloon");
        let size = self.random.below(BALLOON);
        self.set_balloon(size);
    }

    fn set_balloon(&self, mib: u64) {
        let request = SetBalloonRequest { bytes: mib << 20 };
        control(&self.vm.guest.path("control"), async |mut vm| {
            vm.set_balloon(request).await
        })
        .unwrap();
    }

    /// Resets the guest, whatever is under way. Its devices are there in its next life.
    fn reset(&mut self) {
        self.count(RESET);
        self.load.state.turn();
        let socket = self.vm.guest.path("control");
        let before = self.lives();
        control(&socket, async |mut vm| vm.reset(ResetRequest {}).await).unwrap();
        let end = Instant::now() + LIMIT;
        while self.lives() == before {
            assert!(Instant::now() < end, "no next life: {}", self.vm.said());
            thread::sleep(Duration::from_millis(100));
        }
        self.vm.wait_for_peer();
        self.load.state.turn();
        self.use_disk();
        self.use_card();
    }

    /// What the VMM holds when nothing is under way, and the VM has what it had at first.
    pub fn at_rest(&mut self) -> Held {
        self.load.state.rest();
        if self.disk.is_some() {
            self.disk();
        }
        if self.card.is_some() {
            self.card();
        }
        self.set_balloon(0);
        let end = Instant::now() + LIMIT;
        while self.balloon_bytes() > 0 {
            assert!(
                Instant::now() < end,
                "the balloon stays: {}",
                self.vm.said()
            );
            thread::sleep(Duration::from_millis(200));
        }
        // Streams that have ended, clients that have gone.
        thread::sleep(Duration::from_secs(2));
        let id = self.vm.running.id();
        let held = Held::by_vmm(id);
        println!("at rest {held:?}: {:?}", by_mapping(id));
        self.load.state.go_on();
        self.is_well();
        held
    }

    fn balloon_bytes(&self) -> u64 {
        let described = control(&self.vm.guest.path("control"), async |mut vm| {
            vm.describe(DescribeRequest {}).await
        });
        let mut devices = described.unwrap().devices.into_iter();
        let balloon = devices.find(|device| device.kind == "virtio-balloon");
        balloon.unwrap().counters["balloon_bytes"]
    }

    pub fn summary(&self) -> String {
        let mut text = format!("{:?}; exchanged:", self.done);
        for (what, rounds) in ["disk", "net", "vsock"].iter().zip(&self.load.state.rounds) {
            let rounds = rounds.load(Ordering::Relaxed);
            assert!(rounds > 0, "{what} did nothing");
            let _ = write!(text, " {what} {rounds} times");
        }
        text
    }

    /// Ends the VM: what its guest and its VMM have said.
    pub fn end(self) -> (String, String) {
        self.load.end();
        let said = self.vm.said();
        // The answer may be lost with the VM.
        let _ = control(&self.vm.guest.path("control"), async |mut vm| {
            vm.kill(KillRequest {}).await
        });
        let ended = self.vm.running.wait(LIMIT).unwrap();
        assert_eq!(ended.status, 137, "{}", ended.error());
        drop(self.tap);
        (said, ended.error())
    }
}

/// What the guest finds with a script, as soon as it does.
fn find(vm: &Vm, script: &str) -> String {
    let end = Instant::now() + LIMIT;
    loop {
        let found = vm.does(&format!("run {script}"));
        if let Some(name) = found.lines().next() {
            return name.to_owned();
        }
        assert!(Instant::now() < end, "{script}: {}", vm.said());
        thread::sleep(Duration::from_millis(100));
    }
}
