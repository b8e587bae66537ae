//! What a guest does for its requests to be counted: each thing twice, first a little and then more of it. What is told apart is the difference, so
//! that the start of a program, and its end, cost nothing.

use crate::devices::{GUEST, HOST};

/// How long the guest is idle behind each mark, so that the host can read what it has counted until then.
const REST: &str = "0.3";

/// The word at the head of the line in which the guest says, before each mark, what its kernel has counted of the disk.
pub const COUNTED: &str = "counted";

/// The name of the program by which the guest gives its mark.
pub const MARK: &str = "mark";

/// The ports of the host's: one takes what comes, the other gives as long as it is taken.
pub const SINK: u16 = 5001;
/// See above.
pub const SOURCE: u16 = 5002;

/// One thing that is done. By programs that look at no clock, which takes an emulated machine longer than all else.
pub struct Load {
    pub what: &'static str,
    /// What it consists of: a figure is of one of these.
    pub unit: &'static str,
    how: How,
    /// How many of these are done, first and then.
    few: u32,
    many: u32,
}

#[derive(Clone, Copy)]
enum How {
    /// Direct reads of the disk, so large, by so many at once.
    Reads(&'static str, u32),
    /// Writes alike.
    Writes(&'static str, u32),
    /// MiB to the host by TCP.
    Sends,
    /// MiB from the host.
    Receives,
}

const fn small(what: &'static str, how: How) -> Load {
    Load {
        what,
        unit: "request",
        how,
        few: 160,
        many: 4160,
    }
}

const fn large(what: &'static str, how: How) -> Load {
    Load {
        what,
        unit: "MiB",
        how,
        few: 16,
        // Disks are soon done with one, and theirs has 1024.
        many: match how {
            How::Reads(..) | How::Writes(..) => 976,
            How::Sends | How::Receives => 240,
        },
    }
}

/// Everything, in the order in which it is done.
pub const LOADS: &[Load] = &[
    large("blk: reads, 1 MiB, 4 at once", How::Reads("1M", 4)),
    large("blk: writes, 1 MiB, 4 at once", How::Writes("1M", 4)),
    small("blk: reads, 4 KiB, 1 at once", How::Reads("4k", 1)),
    small("blk: reads, 4 KiB, 16 at once", How::Reads("4k", 16)),
    small("blk: writes, 4 KiB, 1 at once", How::Writes("4k", 1)),
    small("blk: writes, 4 KiB, 16 at once", How::Writes("4k", 16)),
    large("net: TCP, guest to host", How::Sends),
    large("net: TCP, host to guest", How::Receives),
];

impl Load {
    /// Whether it is of the disk.
    pub fn is_of_disk(&self) -> bool {
        matches!(self.how, How::Reads(..) | How::Writes(..))
    }

    /// How many more are done the second time.
    pub fn more(&self) -> f64 {
        f64::from(self.many - self.few)
    }

    /// The shell's words that do it.
    fn command(&self, count: u32) -> String {
        let bytes = u64::from(count) << 20;
        match self.how {
            How::Reads(size, at_once) => {
                format!(
                    "each {at_once} {} {size} skip if=/dev/vdb of=/dev/null iflag=direct",
                    count / at_once
                )
            }
            How::Writes(size, at_once) => {
                format!(
                    "each {at_once} {} {size} seek if=/dev/zero of=/dev/vdb oflag=direct",
                    count / at_once
                )
            }
            How::Sends => {
                format!("socat -u -b 65536 OPEN:/dev/zero,readbytes={bytes} TCP:{HOST}:{SINK}")
            }
            How::Receives => {
                format!("socat -u -b 65536 TCP:{HOST}:{SOURCE},readbytes={bytes} OPEN:/dev/null")
            }
        }
    }
}

/// The loads whose names have one of the words in `only` in them; all if there is none.
pub fn named(only: &[String]) -> Vec<&'static Load> {
    let is_named = |load: &&Load| only.is_empty() || only.iter().any(|it| load.what.contains(it));
    LOADS.iter().filter(is_named).collect()
}

/// How many marks a guest gives: one, and one behind each thing that it does.
pub fn marks(loads: &[&Load]) -> usize {
    1 + 2 * loads.len()
}

/// The script of the guest's process 1. It ends with what has failed, if anything has.
pub fn script(loads: &[&Load]) -> String {
    let mut script = format!(
        "#!/bin/sh\n\
         export PATH=/bin:/usr/bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp\n\
         ip addr add {GUEST}/24 dev eth0; ip link set lo up; ip link set eth0 up; cd /tmp\n\
         told() {{ echo {COUNTED} $(cat /sys/block/vdb/stat); {MARK}; sleep {REST}; }}\n\
         fails() {{ cat said; echo \"failed: $*\"; $end -f; }}\n\
         each() {{ local many=$1 count=$2 size=$3 past=$4 i=0 all=; shift 4\n\
         while [ $i -lt $many ]; do dd bs=$size count=$count $past=$((i * count)) conv=notrunc \"$@\" 2>>said & all=\"$all $!\"; i=$((i + 1)); done\n\
         for i in $all; do wait $i || return 1; done; }}\n\
         does() {{ echo \"$@\"; \"$@\" >said 2>&1 || fails \"$@\"; }}\n"
    );
    // Once in vain, for what is read for the first time.
    for load in loads {
        script.push_str(&format!("does {}\n", load.command(load.few)));
    }
    script.push_str("told\n");
    for load in loads {
        for count in [load.few, load.many] {
            script.push_str(&format!("does {}; told\n", load.command(count)));
        }
    }
    script.push_str("$end -f\n");
    script
}
