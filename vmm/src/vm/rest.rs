//! How long nobody has wanted anything of the VMM. Whenever that grows, it lets go of what it does not need.

use std::time::Duration;

/// How long that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Somebody has just wanted something.
    None,
    /// Long enough for what was used last to be done with: the VM's making, or a request.
    Short,
    /// Long enough for a guest to have booted, and to have told what of its memory is free: its devices have been used by then as they rarely are later.
    Long,
}

impl Rest {
    /// How long to wait for somebody before it is a deeper rest.
    pub fn patience(self) -> Duration {
        match self {
            Rest::None => Duration::from_millis(100),
            Rest::Short => Duration::from_secs(5),
            Rest::Long => Duration::MAX,
        }
    }

    /// What it is when nobody has wanted anything meanwhile.
    #[must_use]
    pub fn deeper(self) -> Self {
        match self {
            Rest::None => Rest::Short,
            Rest::Short | Rest::Long => Rest::Long,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_deepens_until_it_waits_for_ever() {
        let mut rest = Rest::None;
        let mut patience = Vec::new();
        for _ in 0..3 {
            patience.push(rest.patience());
            rest = rest.deeper();
        }
        assert!(patience.is_sorted() && patience.last() == Some(&Duration::MAX));
        assert_eq!(rest, Rest::Long);
    }
}
