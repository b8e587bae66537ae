//! Makes a profile a program for the kernel (classic BPF over `struct seccomp_data`; seccomp(2)).
//!
//! The program goes by the ABI, then by halving the range of numbers, to a leaf: a verdict, or the rules of one call in their order.
//! The kernel tries the program for each number when it is loaded, and does not run it again for a call that is allowed whatever its
//! arguments are (since 5.11): it must read nothing but number and ABI on such a way.

use libc::sock_filter as Instruction;

use super::SeccompError;
use super::profile::{Calls, Comparison, Condition, Profile, Rule, Verdict};
use super::syscalls::Abi;

/// Instructions at most (BPF_MAXINSNS).
const MAX_LENGTH: usize = 4096;

/// Where things are in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386 (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
/// The bit by which a 64-bit program's call is one of the x32 ABI.
const X32_BIT: u32 = 0x4000_0000;

/// The operations that are used (linux/bpf_common.h).
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// The program of a profile.
///
/// # Errors
/// When it is longer than the kernel takes.
pub fn program(profile: &Profile) -> Result<Vec<Instruction>, SeccompError> {
    let mut code = vec![plain(LOAD, ARCHITECTURE)];
    code.extend(when(X86_64, native(profile)));
    if let Some(calls) = &profile.i386 {
        let mut body = vec![plain(LOAD, NUMBER)];
        body.extend(search(&leaves(calls, profile), Abi::I386));
        code.extend(when(I386, body));
    }
    // Calls of an ABI that the profile does not have, which it cannot have meant to allow.
    code.push(end(Verdict::KILL_PROCESS));
    if code.len() > MAX_LENGTH {
        return Err(SeccompError::TooLong(code.len()));
    }
    Ok(code)
}

fn native(profile: &Profile) -> Vec<Instruction> {
    let x32 = if profile.x32 {
        // A guest's kernel has no such ABI.
        Verdict::NO_SUCH_CALL
    } else {
        Verdict::KILL_PROCESS
    };
    let mut code = vec![
        plain(LOAD, NUMBER),
        branch(IF_AT_LEAST, X32_BIT, 0, 1),
        end(x32),
    ];
    code.extend(search(&leaves(&profile.native, profile), Abi::X86_64));
    code
}

/// `body`, which never goes on behind itself, when what is loaded is `value`.
fn when(value: u32, body: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = vec![branch(IF_EQUAL, value, 1, 0), over(&body)];
    code.extend(body);
    code
}

/// What happens to calls from a number on.
struct Leaf<'p> {
    first: u32,
    rules: &'p [Rule],
    otherwise: Verdict,
}

impl Leaf<'_> {
    /// The verdict, where arguments do not matter.
    fn verdict(&self) -> Option<Verdict> {
        match self.rules.first() {
            None => Some(self.otherwise),
            Some(rule) if rule.conditions.is_empty() => Some(rule.verdict),
            Some(_) => None,
        }
    }
}

/// The whole range of numbers, in order.
fn leaves<'p>(calls: &'p Calls, profile: &Profile) -> Vec<Leaf<'p>> {
    let mut leaves: Vec<Leaf<'_>> = Vec::new();
    let mut add = |leaf: Leaf<'p>| {
        let verdict = leaf.verdict();
        match leaves.last() {
            Some(last) if verdict.is_some() && last.verdict() == verdict => {}
            _ => leaves.push(leaf),
        }
    };
    let mut next = 0;
    for (&number, rules) in &calls.0 {
        if number > next {
            add(Leaf {
                first: next,
                rules: &[],
                otherwise: profile.default,
            });
        }
        add(Leaf {
            first: number,
            rules,
            otherwise: profile.default,
        });
        next = number + 1;
    }
    add(Leaf {
        first: next,
        rules: &[],
        otherwise: if calls.0.is_empty() {
            profile.default
        } else {
            profile.unheard_of
        },
    });
    leaves
}

fn search(leaves: &[Leaf<'_>], abi: Abi) -> Vec<Instruction> {
    let (lower, upper) = leaves.split_at(leaves.len() / 2);
    let Some(middle) = upper.first().filter(|_| !lower.is_empty()) else {
        return upper
            .first()
            .map_or_else(Vec::new, |leaf| decide(leaf, abi));
    };
    let lower = search(lower, abi);
    // A branch reaches 255 instructions, a jump any.
    let mut code = vec![branch(IF_AT_LEAST, middle.first, 0, 1), over(&lower)];
    code.extend(lower);
    code.extend(search(upper, abi));
    code
}

/// The first rule that holds has its way.
fn decide(leaf: &Leaf<'_>, abi: Abi) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in leaf.rules {
        code.extend(apply(rule, abi));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(end(leaf.otherwise));
    code
}

/// Where a step goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The condition holds.
    Holds,
    /// The rule does not apply.
    Fails,
}

/// An instruction of a condition, whose ends are not known yet.
enum Step {
    Plain(Instruction),
    Branch(u16, u32, To, To),
}

/// The rule's verdict, if its conditions hold; goes on behind itself if not.
fn apply(rule: &Rule, abi: Abi) -> Vec<Instruction> {
    let conditions: Vec<Vec<Step>> = rule.conditions.iter().map(|it| test(it, abi)).collect();
    let length: usize = conditions.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(length + 1);
    for steps in conditions {
        let behind = code.len() + steps.len();
        for step in steps {
            let here = code.len();
            // Six conditions of at most six steps: everything is within reach.
            let distance = |to| match to {
                To::Next => 0,
                To::Holds => (behind - here - 1) as u8,
                To::Fails => (length - here) as u8,
            };
            code.push(match step {
                Step::Plain(instruction) => instruction,
                Step::Branch(operation, value, then, otherwise) => {
                    branch(operation, value, distance(then), distance(otherwise))
                }
            });
        }
    }
    code.push(end(rule.verdict));
    code
}

/// Tests a condition: the upper half of the argument decides, or leaves it to the lower one. A 32-bit program's arguments have no
/// upper half, and what they are compared with is cut to their size.
fn test(condition: &Condition, abi: Abi) -> Vec<Step> {
    use To::{Fails, Holds, Next};
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let load_low = || Step::Plain(plain(LOAD, low));
    let load_high = || Step::Plain(plain(LOAD, low + 4));
    let with_high = abi == Abi::X86_64;
    let (first, then, otherwise) = match condition.comparison {
        Comparison::Equal(value) => (value, Next, Fails),
        Comparison::NotEqual(value) => (value, Fails, Holds),
        Comparison::Greater(value) | Comparison::GreaterOrEqual(value) => (value, Holds, Fails),
        Comparison::Less(value) | Comparison::LessOrEqual(value) => (value, Fails, Holds),
        Comparison::MaskedEqual { mask, value } => {
            let half = |load, mask, value| {
                [
                    load,
                    Step::Plain(plain(AND, mask)),
                    Step::Branch(IF_EQUAL, value, Next, Fails),
                ]
            };
            let mut steps = Vec::new();
            if with_high {
                steps.extend(half(load_high(), high(mask), high(value)));
            }
            steps.extend(half(load_low(), lower(mask), lower(value)));
            return steps;
        }
    };
    let mut steps = Vec::new();
    if with_high {
        steps.push(load_high());
        match condition.comparison {
            Comparison::Equal(_) => steps.push(Step::Branch(IF_EQUAL, high(first), Next, Fails)),
            Comparison::NotEqual(_) => steps.push(Step::Branch(IF_EQUAL, high(first), Next, Holds)),
            _ => {
                steps.push(Step::Branch(IF_GREATER, high(first), then, Next));
                steps.push(Step::Branch(IF_EQUAL, high(first), Next, otherwise));
            }
        }
    }
    steps.push(load_low());
    let value = lower(first);
    steps.push(match condition.comparison {
        Comparison::Equal(_) | Comparison::MaskedEqual { .. } => {
            Step::Branch(IF_EQUAL, value, Holds, Fails)
        }
        Comparison::NotEqual(_) => Step::Branch(IF_EQUAL, value, Fails, Holds),
        Comparison::Greater(_) => Step::Branch(IF_GREATER, value, Holds, Fails),
        Comparison::GreaterOrEqual(_) => Step::Branch(IF_AT_LEAST, value, Holds, Fails),
        Comparison::Less(_) => Step::Branch(IF_AT_LEAST, value, Fails, Holds),
        Comparison::LessOrEqual(_) => Step::Branch(IF_GREATER, value, Fails, Holds),
    });
    steps
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn lower(value: u64) -> u32 {
    value as u32
}

fn end(verdict: Verdict) -> Instruction {
    plain(RETURN, verdict.0)
}

/// Goes on behind `code`. A length that no instruction can hold is far beyond what the kernel takes, which is checked at the end.
fn over(code: &[Instruction]) -> Instruction {
    plain(JUMP, u32::try_from(code.len()).unwrap_or(u32::MAX))
}

fn plain(code: u16, k: u32) -> Instruction {
    branch(code, k, 0, 0)
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}
