//! The program's own heap, which grows to what it needed at its busiest and, left alone, stays so.

/// Gives the whole pages of the heap in which nothing is allocated back to the host, wherever they are. By itself the C library gives back
/// only what lies behind the last allocation, so that one small thing that stays holds all that was freed before it.
pub fn give_back() {
    // SAFETY: it takes the heap's locks and touches nothing that is allocated. That it says whether anything went back is of no use here.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;
    /// Small enough for the heap: what is larger is mapped by itself.
    const PIECE: usize = 4 * PAGE;

    /// How many of the whole pages in a piece that was at `start` are in memory.
    fn resident(start: usize) -> usize {
        let first = start.next_multiple_of(PAGE);
        let mut pages = [0_u8; PIECE / PAGE - 1];
        let length = pages.len() * PAGE;
        // SAFETY: it only looks, and the array has a byte for each page. Where nothing is mapped any more it fails, and says nothing.
        unsafe { libc::mincore(first as *mut libc::c_void, length, pages.as_mut_ptr()) };
        pages.iter().filter(|page| *page & 1 != 0).count()
    }

    #[test]
    fn what_was_freed_before_something_that_stays_goes_back() {
        let mut pieces: Vec<_> = (0..1024).map(|_| vec![1_u8; PIECE]).collect();
        let last = pieces.pop();
        let freed: Vec<_> = pieces.iter().map(|piece| piece.as_ptr() as usize).collect();
        drop(pieces);
        let in_memory = || freed.iter().map(|start| resident(*start)).sum::<usize>();
        let before = in_memory();
        give_back();
        let after = in_memory();
        assert!(after < before / 2, "{after} pages, after {before}");
        assert!(last.is_some_and(|last| last.iter().all(|byte| *byte == 1)));
    }
}
