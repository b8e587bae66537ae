//! What an OCI seccomp profile asks for, checked (runtime-spec, config-linux.md#seccomp), with the numbers in place of the names.

use std::collections::{BTreeMap, HashSet};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::SeccompError;
use super::syscalls::Abi;

/// The kernel takes no larger error number than this from a filter (MAX_ERRNO).
const MAX_ERRNO: u32 = 4095;
/// A system call has six arguments.
const ARGUMENTS: usize = 6;

/// What happens to a system call, as a filter returns it (seccomp(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict(pub u32);

impl Verdict {
    pub const KILL_PROCESS: Self = Self(libc::SECCOMP_RET_KILL_PROCESS);
    pub const NO_SUCH_CALL: Self = Self(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);

    fn of(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Self, SeccompError> {
        let plain = match action {
            LinuxSeccompAction::ScmpActErrno => {
                let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
                if errno > MAX_ERRNO {
                    return Err(SeccompError::Errno(errno));
                }
                return Ok(Self(libc::SECCOMP_RET_ERRNO | errno));
            }
            LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
            LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
            LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
            LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
                libc::SECCOMP_RET_KILL_THREAD
            }
            LinuxSeccompAction::ScmpActNotify => return Err(SeccompError::Action("NOTIFY")),
            LinuxSeccompAction::ScmpActTrace => return Err(SeccompError::Action("TRACE")),
        };
        match errno {
            // The specification has it an error, rather than one that is not heard of.
            Some(_) => Err(SeccompError::NoErrno),
            None => Ok(Self(plain)),
        }
    }

    /// Whether the call is carried out.
    fn lets_pass(self) -> bool {
        [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG].contains(&self.0)
    }
}

/// How an argument is compared, as an unsigned number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// The bits of the mask are those of the value.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, below six.
    pub argument: u8,
    /// What must be true of it.
    pub comparison: Comparison,
}

impl Condition {
    fn of(argument: &LinuxSeccompArg) -> Result<Self, SeccompError> {
        let (index, value) = (argument.index(), argument.value());
        let argument_index = u8::try_from(index)
            .ok()
            .filter(|index| usize::from(*index) < ARGUMENTS)
            .ok_or(SeccompError::Argument(index))?;
        let comparison = match argument.op() {
            LinuxSeccompOperator::ScmpCmpEq => Comparison::Equal(value),
            LinuxSeccompOperator::ScmpCmpNe => Comparison::NotEqual(value),
            LinuxSeccompOperator::ScmpCmpLt => Comparison::Less(value),
            LinuxSeccompOperator::ScmpCmpLe => Comparison::LessOrEqual(value),
            LinuxSeccompOperator::ScmpCmpGt => Comparison::Greater(value),
            LinuxSeccompOperator::ScmpCmpGe => Comparison::GreaterOrEqual(value),
            LinuxSeccompOperator::ScmpCmpMaskedEq => Comparison::MaskedEqual {
                mask: value,
                value: argument.value_two().unwrap_or(0),
            },
        };
        Ok(Self {
            argument: argument_index,
            comparison,
        })
    }
}

/// A verdict, and the conditions which must all hold for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub conditions: Vec<Condition>,
    pub verdict: Verdict,
}

/// What is to happen to the calls of one ABI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls(pub BTreeMap<u32, Vec<Rule>>);

/// A checked profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For calls with no rule that holds.
    pub default: Verdict,
    /// For calls that are newer than any that the profile names.
    pub unheard_of: Verdict,
    /// 64-bit programs.
    pub native: Calls,
    /// 32-bit programs, where the profile has them.
    pub i386: Option<Calls>,
    /// Whether the profile has programs of the x32 ABI.
    pub x32: bool,
    /// For seccomp(2).
    pub flags: libc::c_ulong,
}

impl Profile {
    /// Checks a profile.
    ///
    /// # Errors
    /// When it asks for what a guest does not do, or for nothing sensible.
    pub fn of(seccomp: &LinuxSeccomp) -> Result<Self, SeccompError> {
        let default = Verdict::of(seccomp.default_action(), seccomp.default_errno_ret())?;
        let architectures = seccomp.architectures().clone().unwrap_or_default();
        let mut native = Calls::default();
        let mut i386 = architectures
            .contains(&Arch::ScmpArchX86)
            .then(Calls::default);
        for call in seccomp.syscalls().iter().flatten() {
            let verdict = Verdict::of(call.action(), call.errno_ret())?;
            if call.names().is_empty() {
                return Err(SeccompError::NoNames);
            }
            let rules = rules(call, verdict)?;
            // Nothing that the default does not do.
            if verdict == default {
                continue;
            }
            native.add(Abi::X86_64, call.names(), &rules);
            if let Some(calls) = &mut i386 {
                calls.add(Abi::I386, call.names(), &rules);
            }
        }
        Ok(Self {
            default,
            // Programs ask for a new call and do without it when it is not there. The author of a profile who did not know the
            // call cannot have meant that they should be told something else. A profile that only takes things away is another matter.
            unheard_of: if default.lets_pass() {
                default
            } else {
                Verdict::NO_SUCH_CALL
            },
            native,
            i386,
            x32: architectures.contains(&Arch::ScmpArchX32),
            flags: flags(seccomp.flags().as_deref().unwrap_or_default())?,
        })
    }
}

impl Calls {
    fn add(&mut self, abi: Abi, names: &[String], rules: &[Rule]) {
        for number in names.iter().filter_map(|name| abi.number(name)) {
            self.0
                .entry(number)
                .or_default()
                .extend(rules.iter().cloned());
        }
    }
}

/// An entry's conditions hold together; but those on one argument hold each by itself, as with runc.
fn rules(call: &LinuxSyscall, verdict: Verdict) -> Result<Vec<Rule>, SeccompError> {
    let conditions: Vec<_> = call
        .args()
        .iter()
        .flatten()
        .map(Condition::of)
        .collect::<Result<_, _>>()?;
    let arguments: HashSet<_> = conditions.iter().map(|it| it.argument).collect();
    let rule = |conditions| Rule {
        conditions,
        verdict,
    };
    Ok(if arguments.len() == conditions.len() {
        vec![rule(conditions)]
    } else {
        conditions.into_iter().map(|one| rule(vec![one])).collect()
    })
}

fn flags(flags: &[LinuxSeccompFilterFlag]) -> Result<libc::c_ulong, SeccompError> {
    flags.iter().try_fold(0, |all, flag| {
        Ok(all
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
                }
                // The process has one thread when it gets its filter, and all others come from that.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(SeccompError::Action("NOTIFY"));
                }
            })
    })
}
