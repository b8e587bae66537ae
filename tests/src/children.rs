//! The programs that this process has started.

use std::fs;

/// How many of them have ended without anybody having waited for them. Who waits for what one of them was to do need not wait long then.
#[must_use]
pub fn ended() -> usize {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return 0;
    };
    let lists = threads
        .flatten()
        .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists
        .map(|list| list.split_whitespace().filter(|id| is_over(id)).count())
        .sum()
}

/// Whether the process `id` is there and has not ended.
#[must_use]
pub fn lives(id: u32) -> bool {
    state(&id.to_string()).is_some_and(|state| state != ENDED)
}

fn is_over(id: &str) -> bool {
    state(id) == Some(ENDED)
}

/// The letter that proc(5) has for a process which nobody has waited for.
const ENDED: char = 'Z';

fn state(id: &str) -> Option<char> {
    // `ID (NAME) STATE …`, and the name may hold anything.
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn one_that_has_ended_is_counted_until_it_is_waited_for() {
        let mut child = Command::new("true").spawn().unwrap();
        let id = child.id().to_string();
        let end = Instant::now() + Duration::from_secs(60);
        while !is_over(&id) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        // Other tests have children, too.
        assert!(ended() >= 1);
        assert!(!lives(child.id()));
        child.wait().unwrap();
        assert!(!is_over(&id) && !lives(child.id()));
        let mut waits = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(lives(waits.id()) && !is_over(&waits.id().to_string()));
        waits.kill().unwrap();
        waits.wait().unwrap();
    }
}
