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
pub fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = String::from("\n");
    text.push_str(&line(&head.map(str::to_owned)));
    text.push_str(&format!("|---|{}\n", "---:|".repeat(N - 1)));
    for row in rows {
        text.push_str(&line(&row));
    }
    text
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
        assert_eq!(table(["what", "ms"], rows), expected);
    }
}
