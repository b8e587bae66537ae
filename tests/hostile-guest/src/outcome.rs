//! How an attack, or any step of it, went.

use core::fmt;

/// `Err` says what was not as it must be.
pub type Outcome<T = ()> = Result<T, Complaint>;

/// Something is not as it must be.
#[derive(Clone, Copy, Debug)]
pub enum Complaint {
    /// A number is another one.
    Is {
        /// What it is the number of.
        what: &'static str,
        /// The number.
        got: u64,
        /// What it must be.
        wanted: u64,
    },
    /// It does not exist.
    Missing(&'static str),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::Is { what, got, wanted } => write!(f, "{what} is {got:#x}, not {wanted:#x}"),
            Complaint::Missing(what) => write!(f, "{what} is missing"),
        }
    }
}

/// Complains of `what` unless it is as wanted.
pub fn is(what: &'static str, got: impl Into<u64>, wanted: impl Into<u64>) -> Outcome {
    let (got, wanted) = (got.into(), wanted.into());
    if got == wanted {
        Ok(())
    } else {
        Err(Complaint::Is { what, got, wanted })
    }
}

/// Complains if there is no such thing.
pub fn there<T>(what: &'static str, thing: Option<T>) -> Outcome<T> {
    thing.ok_or(Complaint::Missing(what))
}

/// How often something is looked at that must come about. Each look is an exit from the guest of at least a microsecond.
const PATIENCE: u32 = 1_000_000;

/// Looks at `what` until it is as wanted, and complains if it never is. `look` should leave the guest, so that the host can work.
pub fn becomes(what: &'static str, wanted: u64, look: impl Fn() -> u64) -> Outcome {
    let mut got = look();
    for _ in 0..PATIENCE {
        if got == wanted {
            return Ok(());
        }
        got = look();
    }
    is(what, got, wanted)
}
