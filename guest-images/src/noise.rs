//! Bytes that tests send through a guest's devices: the same in every run, other ones for each seed, and telling their place. So whoever
//! gets them knows what they must be, and a byte that is lost, doubled or out of order is found where it is.

/// An endless sequence of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
}

/// Bytes are made so many at a time.
const WORD: usize = 8;

impl Noise {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Noise { seed }
    }

    /// The eight bytes that begin at `index` times eight (splitmix64).
    fn word(self, index: u64) -> [u8; WORD] {
        let step = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.seed << 32).wrapping_add(step);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    }

    /// The bytes from `at` on, as many as there is room for.
    pub fn fill(self, at: u64, to: &mut [u8]) {
        let (index, skip) = place(at);
        let (head, body) = to.split_at_mut(skip.min(to.len()));
        let first = index.checked_sub(1).map(|before| self.word(before));
        // The end of a word that has begun.
        copy(
            head,
            first.iter().flat_map(|word| word.iter().skip(WORD - skip)),
        );
        let mut words = body.chunks_exact_mut(WORD);
        let mut index = index;
        for to in &mut words {
            to.copy_from_slice(&self.word(index));
            index += 1;
        }
        copy(words.into_remainder(), self.word(index).iter());
    }

    /// Where, from `at` on, other bytes were got than there should be.
    #[must_use]
    pub fn first_difference(self, at: u64, got: &[u8]) -> Option<u64> {
        let mut wanted = vec![0; got.len()];
        self.fill(at, &mut wanted);
        if wanted == got {
            return None;
        }
        let same = wanted.iter().zip(got).take_while(|(a, b)| a == b).count();
        Some(at + same as u64)
    }
}

/// The first whole word behind a place, and how many bytes of the one before it are left.
fn place(at: u64) -> (u64, usize) {
    let word = WORD as u64;
    let index = at.div_ceil(word);
    (index, (index * word - at) as usize)
}

fn copy<'b>(to: &mut [u8], from: impl Iterator<Item = &'b u8>) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_parts_of_the_same_whole() {
        let noise = Noise::new(7);
        let mut whole = [0; 100];
        noise.fill(0, &mut whole);
        for begin in 0..40 {
            for end in begin..60 {
                let mut piece = vec![0; end - begin];
                noise.fill(begin as u64, &mut piece);
                assert_eq!(piece, whole[begin..end], "{begin}..{end}");
                assert_eq!(noise.first_difference(begin as u64, &piece), None);
            }
        }
        assert!(whole.windows(8).all(|window| window != [0; 8]));
    }

    #[test]
    fn what_differs_is_found_in_its_place() {
        let noise = Noise::new(1);
        let mut bytes = [0; 64];
        noise.fill(1000, &mut bytes);
        bytes[13] ^= 1;
        assert_eq!(noise.first_difference(1000, &bytes), Some(1013));
        assert!(Noise::new(2).first_difference(1000, &bytes).is_some());
        // One that is lost shifts all others.
        noise.fill(1000, &mut bytes);
        bytes.copy_within(21.., 20);
        assert_eq!(noise.first_difference(1000, &bytes), Some(1020));
    }
}
