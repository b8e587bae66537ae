//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write as _};

use clap::ValueEnum;

/// How to print a list.
#[derive(Clone, Copy, ValueEnum)]
pub enum Output {
    /// A line for each
    Text,
    /// A JSON array with an object for each
    Json,
}

/// Prints all of `text`.
///
/// # Errors
/// When nobody reads it.
pub fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

/// Lines of columns, each as wide as its widest cell, two spaces apart.
pub fn columns<const N: usize>(lines: impl IntoIterator<Item = [String; N]>) -> String {
    let lines: Vec<_> = lines.into_iter().collect();
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
