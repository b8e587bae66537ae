//! Whether it pays to look for further requests for a while before the driver is told of those that are done.
//!
//! Where several are under way, to tell of each by itself costs the guest an interrupt and a kick for each; where there is one, whoever waits for it waits longer.
//! Which of them it is the last times tell.

/// How many of the next times it is done though it did not pay.
const TRUST: u8 = 3;
/// How many times nobody looks where it does not pay, before it is tried again.
const REST: u8 = 15;

/// What the last times were like.
#[derive(Debug, Default)]
pub struct Patience {
    trust: u8,
    rested: u8,
}

impl Patience {
    /// Whether to look this time.
    pub fn has(&mut self) -> bool {
        if self.trust == 0 {
            self.rested += 1;
            if self.rested > REST {
                self.rested = 0;
                return true;
            }
        }
        self.trust > 0
    }

    /// Further requests came.
    pub fn paid(&mut self) {
        self.trust = TRUST;
    }

    /// None came.
    pub fn was_in_vain(&mut self) {
        self.trust = self.trust.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_had_while_it_pays_and_tried_now_and_then() {
        let mut patience = Patience::default();
        let tries = |patience: &mut Patience, times: usize| {
            let had = (0..times).filter(|_| patience.has());
            had.count()
        };
        assert_eq!(tries(&mut patience, 160), 10);
        patience.paid();
        assert_eq!(tries(&mut patience, 160), 160);
        for _ in 0..TRUST {
            assert!(patience.has());
            patience.was_in_vain();
        }
        assert_eq!(tries(&mut patience, 16), 1);
    }
}
