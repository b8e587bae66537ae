//! How fast a VM starts and what it costs, side by side with QEMU's machines, and with other VMMs where they are named.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use orlop_testbed::cpio::{Archive, DIRECTORY, PROGRAM};
use orlop_testbed::progress::step;
use orlop_testbed::setup::build;

use crate::budgets::{Budgets, Costs};
use crate::contender::{Contender, Content, Guest, Vmm, last_words, versions};
use crate::counts::Counts;
use crate::group::Group;
use crate::held::Held;
use crate::payload;
use crate::plot;
use crate::trace::{Marks, Trace};
use crate::workplace::Workplace;

/// The guest's RAM, that of Firecracker's promises.
const MEMORY_MIB: u64 = 128;
/// How many vCPUs a VMM is looked at with besides one.
const MANY: u32 = 8;
/// How long one start may take where everything is emulated.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a guest that has reached user space is left alone before it is looked at what its VMM holds: longer than a guest waits until it tells of
/// free memory, and a VMM until it lets go of what it does not need. Not ten seconds: that is when Linux asks for random numbers once more.
const SETTLE: Duration = Duration::from_secs(13);

/// One start.
#[derive(Clone, Copy)]
struct Start {
    /// Seconds from the program's execution to the first entry of the guest.
    to_first_entry: f64,
    /// Seconds from the program's execution to the guest's process 1.
    to_init: f64,
}

/// What was seen of one VMM.
struct Measured {
    contender: Contender,
    /// Starts of a guest with a kernel.
    starts: Vec<Start>,
    /// Seconds from the program's execution to the first instruction of a guest without one.
    payloads: Vec<f64>,
    /// What the VMM holds for a guest with a kernel and one vCPU that has been idle for a while.
    of_one: Held,
    /// What the VMM holds for a guest of [`MANY`] vCPUs, of which one runs, without a kernel: a kernel that starts the others would wait long for
    /// them on the one processor of a host whose clock counts instructions.
    of_many: Held,
    counts: Counts,
}

/// Measures `runs` starts of each VMM in turn, prints tables and draws a `plot` of the times and of what is held.
///
/// # Errors
/// When a VMM does not run, or the kernel's traces cannot be had.
pub fn measure(runs: u32, plot: Option<&Path>) -> Result<()> {
    let stage = Stage::set()?;
    let contenders = stage.workplace.contenders()?;
    let mut measured: Vec<_> = contenders.into_iter().map(Measured::new).collect();
    stage.starts(&mut measured, runs)?;
    for measured in &mut measured {
        stage.count(measured)?;
    }
    let comparisons = report::of(&measured);
    for comparison in &comparisons {
        print!("{}", comparison.table());
    }
    print!("{}", versions(measured.iter().map(|it| &it.contender))?);
    if let (Some(file), [times, held, _]) = (plot, &comparisons) {
        plot::draw(
            file,
            "A VM's start: how many times less Orlop takes",
            &[times, held],
        )?;
    }
    Ok(())
}

/// Measures `runs` starts of Orlop, and sees whether they keep to their budgets.
///
/// # Errors
/// When one is exceeded; otherwise as [`measure`].
pub fn check(runs: u32) -> Result<()> {
    let budget = Budgets::read()?.start;
    let stage = Stage::set()?;
    let mut orlop = [Measured::new(Contender::Orlop(stage.workplace.orlop()))];
    stage.starts(&mut orlop, runs)?;
    let [mut orlop] = orlop;
    stage.count(&mut orlop)?;
    let starts = orlop.starts.iter();
    let least =
        |figure: fn(&Start) -> f64| starts.clone().map(figure).fold(f64::INFINITY, f64::min);
    let exits = &orlop.counts.exits;
    let costs = Costs {
        first_instruction_ms: least(|start| start.to_first_entry * 1000.0),
        kernel_ms: least(|start| (start.to_init - start.to_first_entry) * 1000.0),
        beyond_ram_mib: report::mib(orlop.of_one.beyond_ram),
        system_calls: orlop.counts.system_calls as f64,
        exits: exits.all.values().sum::<u64>() as f64,
        exits_to_user_space: exits.to_user_space.values().sum::<u64>() as f64,
    };
    costs.keep_to(&budget)
}

impl Measured {
    fn new(contender: Contender) -> Self {
        Self {
            contender,
            starts: Vec::new(),
            payloads: Vec::new(),
            of_one: Held::default(),
            of_many: Held::default(),
            counts: Counts::default(),
        }
    }
}

/// What is started, and where.
pub struct Stage {
    workplace: Workplace,
    /// With a kernel, and one vCPU.
    guest: Guest,
    /// Without a kernel, and with one vCPU.
    payload: Guest,
    /// The same with [`MANY`].
    many: Guest,
    console: PathBuf,
}

impl Stage {
    /// Makes what is started.
    ///
    /// # Errors
    /// When something is missing, or does not fit into memory.
    pub fn set() -> Result<Self> {
        let workplace = Workplace::make()?;
        let initramfs = workplace.path("initramfs");
        let mark = build::programs_directory().join("orlop-boot-mark");
        fs::write(&initramfs, archive(&mark)?)?;
        let payload = workplace.path("payload");
        fs::write(&payload, payload::image())?;
        huge_pages_on_advice();
        let guest = |kernel, vcpus, content| Guest {
            kernel,
            vcpus,
            memory_mib: MEMORY_MIB,
            content,
            needs_timer: false,
        };
        let without_kernel = |vcpus| guest(payload.clone(), vcpus, Content::Nothing);
        Ok(Self {
            guest: guest(workplace.kernel(), 1, Content::Initramfs(initramfs)),
            payload: without_kernel(1),
            many: without_kernel(MANY),
            console: workplace.path("console"),
            workplace,
        })
    }

    /// Where the VMMs are.
    pub fn workplace(&self) -> &Workplace {
        &self.workplace
    }

    /// A guest with a kernel, whose process 1 gives the mark, to be looked at when it has been idle for a while.
    pub fn lasting_guest(&self) -> Guest {
        Guest {
            needs_timer: true,
            ..self.guest.clone()
        }
    }

    /// The file that the consoles go to.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// `runs` starts of each, in turn.
    fn starts(&self, measured: &mut [Measured], runs: u32) -> Result<()> {
        for run in 0..=runs {
            for measured in &mut *measured {
                let contender = &measured.contender;
                let (start, _) = self.one(contender, &self.guest)?;
                let (payload, _) = self.one(contender, &self.payload)?;
                // The first one fills caches.
                if run > 0 {
                    step(format!(
                        "run {run} of {runs}, {}: {:.1} ms to the first instruction, {:.1} ms to init; {:.1} ms without a kernel",
                        contender.name(),
                        start.to_first_entry * 1000.0,
                        start.to_init * 1000.0,
                        payload.to_init * 1000.0
                    ));
                    measured.starts.push(start);
                    measured.payloads.push(payload.to_init);
                }
            }
        }
        Ok(())
    }

    /// What is the same each time: what a start costs in exits, and what the VMM holds then.
    fn count(&self, measured: &mut Measured) -> Result<()> {
        let contender = &measured.contender;
        let counts = Counts::of(contender, &self.guest, &self.console);
        measured.counts = counts.with_context(|| self.failure(contender))?;
        let held = |guest: &Guest| {
            let group = known(Group::make("orlop-bench"));
            let vmm = self.booted_in(group.as_ref(), contender, guest)?;
            thread::sleep(SETTLE);
            let charged = group.as_ref().and_then(|group| known(group.charged()));
            Held::by(vmm.id(), charged, guest.memory_mib << 20)
        };
        measured.of_one = held(&self.guest)?;
        measured.of_many = held(&self.many)?;
        Ok(())
    }

    /// Starts a guest, which runs on. One without a kernel is at its mark at once.
    fn one(&self, contender: &Contender, guest: &Guest) -> Result<(Start, Vmm)> {
        let start = || -> Result<(Start, Vmm)> {
            let trace = Trace::begin()?;
            let vmm = contender.start(guest, &self.console)?;
            let moments = trace.finish(vmm.id(), LIMIT)?;
            let start = Start {
                to_first_entry: moments.first_entry - moments.exec,
                to_init: moments.init - moments.exec,
            };
            Ok((start, vmm))
        };
        start().with_context(|| self.failure(contender))
    }

    /// Starts a guest, in a control group if there is one, and waits for its mark.
    fn booted_in(
        &self,
        group: Option<&Group>,
        contender: &Contender,
        guest: &Guest,
    ) -> Result<Vmm> {
        let start = || -> Result<Vmm> {
            let mut marks = Marks::begin()?;
            let vmm = match group {
                Some(group) => contender.start_in(group, guest, &self.console)?,
                None => contender.start(guest, &self.console)?,
            };
            marks.next(LIMIT)?;
            Ok(vmm)
        };
        start().with_context(|| self.failure(contender))
    }

    /// How a guest of this VMM ends that fails.
    pub fn failure(&self, contender: &Contender) -> String {
        format!("{}: {}", contender.name(), last_words(&self.console))
    }
}

/// What not every host's kernel tells of its control groups. Where it does not, that is said, and the figure is left out.
fn known<T>(told: Result<T>) -> Option<T> {
    told.inspect_err(|error| step(format!("what no other VM shares is left out: {error:#}")))
        .ok()
}

/// An initramfs whose process 1 is `init`.
fn archive(init: &Path) -> Result<Vec<u8>> {
    let init = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY, &[])?;
    archive.add("init", PROGRAM, &init)?;
    Ok(archive.finish()?)
}

/// Huge pages for those that ask, so that no VMM's own heap grows by 2 MiB at a touch.
fn huge_pages_on_advice() {
    let switch = "/sys/kernel/mm/transparent_hugepage/enabled";
    if let Err(error) = fs::write(switch, "madvise") {
        step(format!("huge pages stay as they are: {switch}: {error}"));
    }
}
