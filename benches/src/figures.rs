//! Medians, and tables of them.

use anyhow::{Context, Result};

/// The middle one of `values`, or what is between the two in the middle.
///
/// # Errors
/// When there is none.
pub fn median(values: impl IntoIterator<Item = f64>) -> Result<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values
        .len()
        .checked_sub(1)
        .context("nothing was measured")?;
    let middle = values.get(last / 2).zip(values.get(last.div_ceil(2)));
    let (lower, upper) = middle.context("nothing was measured")?;
    Ok(f64::midpoint(*lower, *upper))
}

/// A table as Markdown has it. All columns but the first are numbers.
pub fn table<Row: AsRef<[String]>>(
    head: &[impl AsRef<str>],
    rows: impl IntoIterator<Item = Row>,
) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<_> = head.iter().map(|cell| cell.as_ref().to_owned()).collect();
    let numbers = head.len().saturating_sub(1);
    let mut text = String::from("\n");
    text.push_str(&line(&head));
    text.push_str(&format!("|---|{}\n", "---:|".repeat(numbers)));
    for row in rows {
        text.push_str(&line(row.as_ref()));
    }
    text
}

/// Figures of several VMMs side by side, Orlop's first.
pub struct Comparison {
    /// What all of it is about: the head of the first column.
    pub about: &'static str,
    pub names: Vec<&'static str>,
    /// What stands behind each of the others' figures.
    pub beside: Beside,
    pub rows: Vec<Row>,
}

/// How Orlop's figure compares with another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Orlop's, divided by the other.
    Ratio,
    /// How many times better Orlop's is.
    Lead,
}

/// One thing that was measured.
pub struct Row {
    pub what: String,
    pub better: Better,
    /// How many decimals are printed.
    pub decimals: usize,
    /// What was measured of each, run by run; nothing of what could not be.
    pub runs: Vec<Vec<f64>>,
}

/// Which of two figures is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
}

impl Row {
    /// The medians of all runs.
    pub fn figures(&self) -> Vec<Option<f64>> {
        let runs = self.runs.iter();
        runs.map(|runs| median(runs.iter().copied()).ok()).collect()
    }

    /// How far apart runs of one and the same were, as a part of their median, where that is most. None if nothing ran twice.
    fn spread(&self) -> Option<f64> {
        let spread = |runs: &Vec<f64>| {
            let median = median(runs.iter().copied()).ok()?;
            let least = runs.iter().copied().reduce(f64::min)?;
            let most = runs.iter().copied().reduce(f64::max)?;
            Some((most - least) / median).filter(|it| runs.len() > 1 && it.is_finite())
        };
        self.runs.iter().filter_map(spread).reduce(f64::max)
    }

    /// How many times better Orlop's figure is than each other one.
    pub fn leads(&self) -> Vec<Option<f64>> {
        self.compared(|ours, theirs| match self.better {
            Better::Less => theirs / ours,
            Better::More => ours / theirs,
        })
    }

    fn compared(&self, with: impl Fn(f64, f64) -> f64) -> Vec<Option<f64>> {
        let figures = self.figures();
        let ours = figures.first().copied().flatten();
        let theirs = figures.iter().skip(1);
        let compared =
            theirs.map(|theirs| ours.zip(*theirs).map(|(ours, theirs)| with(ours, theirs)));
        compared.map(|it| it.filter(|it| it.is_finite())).collect()
    }

    fn cells(&self, beside: Beside) -> Vec<String> {
        let compared = match beside {
            Beside::Ratio => self.compared(|ours, theirs| ours / theirs),
            Beside::Lead => self.leads(),
        };
        let mut figures = self.figures().into_iter();
        let spread = self
            .spread()
            .map(|it| format!(" (spread {:.0} % at most)", it * 100.0));
        let mut cells = vec![format!("{}{}", self.what, spread.unwrap_or_default())];
        cells.extend(figures.next().map(|ours| cell(ours, self.decimals)));
        for (theirs, compared) in figures.zip(compared) {
            cells.extend([cell(theirs, self.decimals), cell(compared, 2)]);
        }
        cells
    }
}

impl Comparison {
    /// It as a table.
    pub fn table(&self) -> String {
        let beside = match self.beside {
            Beside::Ratio => "ratio",
            Beside::Lead => "lead",
        };
        let mut head = vec![self.about];
        for (number, name) in self.names.iter().enumerate() {
            head.push(name);
            head.extend((number > 0).then_some(beside));
        }
        table(&head, self.rows.iter().map(|row| row.cells(self.beside)))
    }
}

fn cell(figure: Option<f64>, decimals: usize) -> String {
    match figure {
        Some(figure) if figure.is_finite() => format!("{figure:.decimals$}"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median([3.0, 1.0, 2.0]).unwrap(), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]).unwrap(), 3.0);
        assert!(median([]).is_err());
    }

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let rows = [["a".to_owned(), "1".to_owned()]];
        let expected = "\n| what | ms |\n|---|---:|\n| a | 1 |\n";
        assert_eq!(table(&["what", "ms"], rows), expected);
    }

    #[test]
    fn ours_is_compared_with_each_of_the_others() {
        let row = |better| Row {
            what: "ms".to_owned(),
            better,
            decimals: 1,
            runs: vec![vec![2.0], vec![4.0], vec![], vec![0.0]],
        };
        let comparison = |beside| Comparison {
            about: "",
            names: vec!["a", "b", "c", "d"],
            beside,
            rows: vec![row(Better::Less)],
        };
        assert_eq!(
            comparison(Beside::Ratio).table(),
            "\n|  | a | b | ratio | c | ratio | d | ratio |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n\
             | ms | 2.0 | 4.0 | 0.50 | - | - | 0.0 | - |\n"
        );
        assert!(comparison(Beside::Lead).table().contains("| 4.0 | 2.00 |"));
        let twice = Row {
            runs: vec![vec![1.0, 3.0], vec![3.0, 5.0], vec![], vec![7.0]],
            ..row(Better::Less)
        };
        assert_eq!(twice.figures(), [Some(2.0), Some(4.0), None, Some(7.0)]);
        let cells = twice.cells(Beside::Ratio);
        assert_eq!(cells[0], "ms (spread 100 % at most)");
        assert_eq!(row(Better::Less).leads(), [Some(2.0), None, Some(0.0)]);
        assert_eq!(row(Better::More).leads(), [Some(0.5), None, None]);
    }
}
