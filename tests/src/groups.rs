//! Programs of stories, and which of them share a machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// How many programs share a machine.
const SHARING: usize = 4;

/// The program whose stories give devices of the host's to guests, on a machine that has such.
const PASSTHROUGH: &str = "passthrough";

/// The program whose stories run the tests of others, which take an hour.
pub(crate) const CONFORMANCE: &str = "conformance";

/// Programs whose stories are told in one machine, one program after another: a machine takes a while to start.
pub(crate) struct Group<'o> {
    pub(crate) programs: Vec<PathBuf>,
    /// Which stories, by parts of their names; none of these for all.
    pub(crate) only: &'o [String],
    /// Their names. No two are alike, for by its name a story is left out that need not be told again.
    stories: BTreeSet<String>,
}

impl Group<'_> {
    /// Whether its machine has devices that can be given to guests. No other program's has: that would be another host.
    pub(crate) fn has_devices(&self) -> bool {
        self.has(PASSTHROUGH)
    }

    /// Whether it is those who test a runtime for long. Nobody else is with them.
    pub(crate) fn is_conformance(&self) -> bool {
        self.has(CONFORMANCE)
    }

    fn has(&self, name: &str) -> bool {
        self.programs.iter().any(|it| name_of(it) == name)
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Groups<'o>(pub(crate) Vec<Group<'o>>);

impl<'o> Groups<'o> {
    /// Puts a program into the last one, or begins another one with it.
    pub(crate) fn add(&mut self, program: PathBuf, only: &'o [String]) -> Result<()> {
        let stories = stories_of(&program)?;
        let fits = |group: &&mut Group| {
            group.only == only
                && group.programs.len() < SHARING
                && group.stories.is_disjoint(&stories)
                && !(group.has_devices() || group.is_conformance())
                && ![PASSTHROUGH, CONFORMANCE].contains(&&*name_of(&program))
        };
        match self.0.last_mut().filter(fits) {
            Some(group) => {
                group.programs.push(program);
                group.stories.extend(stories);
            }
            None => self.0.push(Group {
                programs: vec![program],
                only,
                stories,
            }),
        }
        Ok(())
    }
}

/// The names of a program's stories.
pub(crate) fn stories_of(program: &Path) -> Result<BTreeSet<String>> {
    let mut list = Command::new(program);
    list.args(["--list", "--format=terse"]);
    let listed = list
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let name = |line: &str| line.strip_suffix(": test").map(str::to_owned);
    Ok(names.lines().filter_map(name).collect())
}

/// A program's name without what cargo adds to it.
pub(crate) fn name_of(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(programs: usize, stories: &[&str]) -> Group<'static> {
        Group {
            programs: vec![PathBuf::from("program"); programs],
            only: &[],
            stories: stories.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn programs_share_a_machine_when_there_is_room_and_their_stories_have_other_names() {
        // This program itself, whose tests have names as well.
        let this = std::env::current_exe().unwrap();
        let one = module_path!().split_once("::").unwrap().1;
        let one = format!("{one}::a_program_has_a_name_without_what_cargo_adds");
        for (last, groups) in [
            (group(1, &["other"]), 1),
            (group(1, &[&one]), 2),
            (group(SHARING, &["other"]), 2),
        ] {
            let mut all = Groups(vec![last]);
            all.add(this.clone(), &[]).unwrap();
            assert_eq!(all.0.len(), groups);
            assert!(all.0.last().unwrap().stories.contains(&one));
        }
        let mut all = Groups(vec![Group {
            programs: vec!["passthrough-1".into()],
            ..group(1, &["other"])
        }]);
        all.add(this.clone(), &[]).unwrap();
        assert_eq!(all.0.len(), 2, "one of them has devices");
        assert!(all.0[0].has_devices() && !all.0[1].has_devices());
        let filter = ["x".to_owned()];
        let mut all = Groups(vec![group(1, &["other"])]);
        all.add(this, &filter).unwrap();
        assert_eq!(all.0.len(), 2, "one of them tells other stories");
    }

    #[test]
    fn a_program_has_a_name_without_what_cargo_adds() {
        assert_eq!(name_of(Path::new("/deps/pod_disks-0123abcd")), "pod_disks");
        assert_eq!(name_of(Path::new("/deps/pods")), "pods");
    }
}
