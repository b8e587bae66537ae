//! Container images, as people run them with `orlop run --image`.

mod common;
mod guest;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::stage;
use guest::on_terminal::OnTerminal;
use guest::{orlop, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::cache::{Cache, GuestFiles};
use orlop_testbed::containerd::ctr::{Done, Running};
use orlop_testbed::image;
use orlop_testbed::setup::debian_image;
use tempfile::TempDir;

/// How long a command may take, its guest's boot included.
const LIMIT: Duration = Duration::from_secs(300);

/// A user with an archive of images, a store, and a configuration.
struct User {
    directory: TempDir,
}

impl User {
    /// With Debian's kernel for guests.
    fn new() -> Self {
        Self::with(&Cache::open().unwrap().debian_boots())
    }

    fn with(guest: &GuestFiles) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let virtiofsd = Cache::open().unwrap().virtiofsd();
        let config = format!(
            "{}virtiofsd = {virtiofsd:?}\nboot_timeout = 240\n",
            guest.to_toml()
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        fs::write(
            directory.path().join("images.tar"),
            image::archive().unwrap(),
        )
        .unwrap();
        Self { directory }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = orlop();
        command
            .args(arguments)
            .env("ORLOP_CONFIG", self.directory.path().join("config.toml"))
            .env("ORLOP_IMAGES", self.directory.path().join("store"))
            .env("XDG_RUNTIME_DIR", self.runtime());
        command
    }

    /// Where the sockets of running VMs are.
    fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Starts a shell script in the busybox image.
    fn start(&self, flags: &[&str], script: &str, input: &[u8]) -> Running {
        let archive = self.directory.path().join("images.tar");
        let image = format!("{}:{}", archive.display(), image::BUSYBOX);
        let line = [
            &["run", "--image", &image],
            flags,
            &["--", "sh", "-c", script],
        ]
        .concat();
        Running::start(self.command(&line), input).unwrap()
    }

    /// Runs it to its end, with `input` at its standard input.
    fn run(&self, flags: &[&str], script: &str, input: &[u8]) -> Done {
        self.start(flags, script, input).wait(LIMIT).unwrap()
    }

    /// Executes a command in the container of a VM.
    fn exec(&self, name: &str, command: &[&str]) -> Done {
        let line = [&["exec", name], command].concat();
        let running = Running::start(self.command(&line), &[]).unwrap();
        running.wait(LIMIT).unwrap()
    }
}

#[test]
fn a_command_of_an_image_has_its_streams_and_its_exit_status() {
    let Some(stage) = stage() else { return };
    let user = User::new();
    let script = "cat; echo to-stderr >&2; touch /written && uname -r; exit 7";
    let ended = user.run(&["-i"], script, b"typed\n");
    assert_eq!(ended.status, 7, "{}", ended.error());
    let output = ended.output();
    assert!(output.starts_with("typed\n"), "{output}");
    assert!(!output.contains(&common::host_kernel()), "{output}");
    assert_eq!(ended.error().trim(), "to-stderr");
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn busybox_runs_in_a_guest_of_48_mib() {
    let Some(stage) = stage() else { return };
    let user = User::with(&Cache::open().unwrap().pod_boots());
    let script = "sed -n 's/ *kB//; s/^MemAvailable: *//p' /proc/meminfo";
    let ended = user.run(&["--memory", "48M"], script, &[]);
    assert_eq!(ended.status, 0, "{}", ended.error());
    let kib: u64 = ended.output().trim().parse().unwrap();
    println!("the container has {kib} KiB");
    assert!(kib > 2 << 10, "{kib} KiB");
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn a_command_has_the_environment_the_user_and_the_directory_that_are_asked_for() {
    let Some(stage) = stage() else { return };
    let user = User::new();
    let flags = ["--env", "A=b c", "--user", "12:34", "--workdir", "/bin"];
    let ended = user.run(&flags, "echo $A; id -u; id -g; pwd", &[]);
    assert_eq!(ended.output(), "b c\n12\n34\n/bin\n", "{}", ended.error());
    assert_eq!(ended.status, 0);
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn a_command_has_the_volumes_that_are_asked_for() {
    let Some(stage) = stage() else { return };
    let user = User::new();
    let [data, tools] = ["data", "tools"].map(|name| user.directory.path().join(name));
    for directory in [&data, &tools] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(tools.join("from"), "the host\n").unwrap();
    let settings = user.directory.path().join("settings");
    fs::write(&settings, "colour=blue\n").unwrap();
    let (data_flag, tools_flag, file_flag) = (
        format!("{}:/data", data.display()),
        format!("{}:/tools:ro", tools.display()),
        format!("{}:/etc/settings:ro", settings.display()),
    );
    let ended = user.run(
        &["--volume", &data_flag, "--volume", &tools_flag, "--volume", &file_flag],
        "cat /tools/from >/data/to; echo no >/tools/from; cat /tools/from; echo no >/etc/settings; cat /etc/settings",
        &[],
    );
    assert_eq!(
        ended.output(),
        "the host\ncolour=blue\n",
        "{}",
        ended.error()
    );
    assert!(ended.error().contains("Read-only"), "{}", ended.error());
    assert_eq!(fs::read_to_string(data.join("to")).unwrap(), "the host\n");
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn an_image_that_is_damaged_is_refused_and_nothing_is_left() {
    let Some(stage) = stage() else { return };
    let user = User::new();
    let archive = user.directory.path().join("images.tar");
    let whole = fs::read(&archive).unwrap();
    fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    let ended = user.run(&[], "true", &[]);
    assert_eq!(ended.status, 125, "{}", ended.error());
    assert!(ended.error().contains("images.tar"), "{}", ended.error());
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn debians_shell_and_tools_run_from_debians_packages() {
    let Some(stage) = stage() else { return };
    let Some(layout) = debian_image::at_full_size() else {
        return;
    };
    let user = User::new();
    let image = layout.display().to_string();
    let script = ". /etc/os-release; echo $ID $BASH; perl -e 'print 6 * 7, qq(\n)'; dpkg --compare-versions 2 gt 1 && getent passwd nobody";
    let line = ["run", "--image", &image, "--", "bash", "-c", script];
    let running = Running::start(user.command(&line), &[]).unwrap();
    let ended = running.wait(LIMIT).unwrap();
    assert_eq!(ended.status, 0, "{}", ended.error());
    let expected =
        "debian /bin/bash\n42\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
    assert_eq!(ended.output(), expected);
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn a_guest_that_crashes_is_said_to_have_with_the_end_of_its_console() {
    let Some(stage) = stage() else { return };
    let user = User::with(&Cache::open().unwrap().pod_boots());
    let cmdline = "console=ttyS0 quiet reboot=k panic=1 sysctl.vm.panic_on_oom=1";
    let greedy = "x=0123456789abcdef; while :; do x=$x$x; done";
    let ended = user.run(&["--memory", "128M", "--cmdline", cmdline], greedy, &[]);
    assert_eq!(ended.status, 125, "{}", ended.error());
    let error = ended.error();
    for part in [
        "the guest's kernel panicked",
        "Kernel panic - not syncing: Out of memory",
    ] {
        assert!(error.contains(part), "{error}");
    }
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn a_command_on_a_terminal_has_its_size_and_hears_when_that_changes() {
    let Some(stage) = stage() else { return };
    let user = User::new();
    // What is said is not what is typed, which a terminal shows as well.
    let says = |word: &str| {
        format!(
            "trap 'echo {word} $(stty size)' WINCH; trap 'exit 130' INT; trap 'exit 9' TERM; stty size; while :; do sleep 1; done"
        )
    };
    let archive = user.directory.path().join("images.tar");
    let image = format!("{}:{}", archive.display(), image::BUSYBOX);
    let script = says("changed:");
    let run = [
        "run", "--image", &image, "-it", "--name", "web", "--", "sh", "-c", &script,
    ];
    let mut first = OnTerminal::of_size(user.command(&run), 91, 27);
    first.shows("27 91");
    first.resize(101, 37);
    first.shows("changed: 37 101");
    let script = says("also changed:");
    let exec = ["exec", "-it", "web", "sh", "-c", &script];
    let mut second = OnTerminal::of_size(user.command(&exec), 60, 20);
    second.shows("20 60");
    second.resize(61, 21);
    second.shows("also changed: 21 61");
    // Ctrl-C is for the command, whose end it is.
    second.types(b"\x03");
    assert_eq!(second.ended(), 130);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ended(), 9);
    drop(user);
    stage.leaves_nothing();
}

#[test]
fn commands_are_executed_in_a_container_until_its_vm_is_gone_with_whoever_ran_it() {
    let Some(stage) = stage() else { return };
    let user = User::new();
    let running = user.start(&["--name", "web"], "echo mine >/file; sleep 1000", &[]);
    until("the container runs", || {
        user.exec("web", &["test", "-s", "/file"]).status == 0
    });
    let told = user.exec("web", &["cat", "/file"]);
    assert_eq!(told.output(), "mine\n", "{}", told.error());
    for (command, status) in [
        (&["sh", "-c", "exit 9"][..], 9),
        (&["no-such-program"], 127),
        (&["/etc"], 126),
        (&["sh", "-c", "sh -c 'kill -9 $$'"], 137),
    ] {
        let ended = user.exec("web", command);
        assert_eq!(ended.status, status, "{command:?}: {}", ended.error());
    }
    kill(
        Pid::from_raw(running.id().try_into().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    running.wait(LIMIT).unwrap();
    let left = || {
        fs::read_dir(user.runtime().join("orlop/vm"))
            .unwrap()
            .count()
    };
    until("the VM is gone", || left() == 0);
    assert_eq!(user.exec("web", &["true"]).status, 125);
    drop(user);
    stage.leaves_nothing();
}
