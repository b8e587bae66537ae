//! Which stories are asked for.

use std::path::Path;

use anyhow::Result;

use crate::groups::{name_of, stories_of};

/// Which stories are to be told.
pub(crate) struct Wanted {
    all: bool,
    /// All of these programs'.
    programs: Vec<String>,
    /// Those whose names contain one of these.
    parts: Vec<String>,
}

impl Wanted {
    /// Those that `words` ask for; without words, all. A word that is a program's name means that program and no story's name: `resize`
    /// is in the name of one that needs a cluster.
    pub(crate) fn among(names: &[String], words: &[String]) -> Self {
        let (programs, parts) = words.iter().cloned().partition(|word| names.contains(word));
        Wanted {
            all: words.is_empty(),
            programs,
            parts,
        }
    }

    /// Which of a program's, by parts of their names; none of these for all of them, and `None` for not one.
    ///
    /// # Errors
    /// When the program does not run.
    pub(crate) fn of(&self, program: &Path) -> Result<Option<&[String]>> {
        if self.all || self.programs.contains(&name_of(program)) {
            return Ok(Some(&[]));
        }
        if self.parts.is_empty() {
            return Ok(None);
        }
        let stories = stories_of(program)?;
        let is_asked_for = |story: &String| self.parts.iter().any(|part| story.contains(part));
        Ok(stories.iter().any(is_asked_for).then_some(&*self.parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the words ask for of this program itself, whose tests have names as well; it is called `orlop_testbed`.
    fn asked(words: &[&str]) -> Option<Vec<String>> {
        let names = ["orlop_testbed".to_owned(), "wanted".to_owned()];
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        let this = std::env::current_exe().unwrap();
        let wanted = Wanted::among(&names, &words);
        wanted.of(&this).unwrap().map(<[String]>::to_vec)
    }

    #[test]
    fn a_word_is_a_program_or_a_part_of_a_story_s_name() {
        assert_eq!(asked(&[]), Some(vec![]));
        assert_eq!(asked(&["orlop_testbed"]), Some(vec![]));
        assert_eq!(asked(&["a_part_of_a_story"]).unwrap().len(), 1);
        assert_eq!(asked(&["nothing-has-this-name"]), None);
        assert_eq!(
            asked(&["wanted"]),
            None,
            "another program's name is no part of a story's"
        );
    }
}
