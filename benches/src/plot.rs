//! A plot of how far Orlop is ahead: a group of bars for each row, one for each other VMM.

use std::path::Path;

use anyhow::{Context, Result, bail};
use plotters::prelude::*;

use crate::figures::Comparison;

/// How wide a plot is, how much of that is for the rows' names, and how high a bar and what is around them is, in pixels.
const WIDTH: u32 = 1000;
const NAMES: i32 = 400;
const BAR: i32 = 14;
const GAP: i32 = 16;
const TOP: i32 = 60;
const MARGIN: i32 = 20;

/// Told apart by most who cannot tell all colours (Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// Draws `comparisons` as an SVG file. Bars are how many times better Orlop is, on a logarithmic scale from a tenth on, so that twice and half are
/// as far from the line at which both are as good.
///
/// # Errors
/// When the file cannot be written, or there is nothing to draw.
pub fn draw(file: &Path, title: &str, comparisons: &[&Comparison]) -> Result<()> {
    let others = comparisons.first().map(|it| it.names.as_slice());
    let others = others.and_then(|names| names.get(1..)).unwrap_or_default();
    let rows: Vec<_> = comparisons.iter().flat_map(|it| &it.rows).collect();
    if rows.is_empty() || others.is_empty() {
        bail!("there is nothing to compare in {}", file.display());
    }
    let group = BAR * others.len() as i32 + GAP;
    let bottom = TOP + group * rows.len() as i32;
    let text = |size| ("sans-serif", size).into_font();
    let size = (WIDTH, (bottom + MARGIN).unsigned_abs());
    let root = SVGBackend::new(file, size).into_drawing_area();
    let drawn = || -> Result<(), Box<dyn std::error::Error + '_>> {
        root.fill(&WHITE)?;
        root.draw(&Text::new(title, (MARGIN, 12), text(16)))?;
        for (at, name) in others.iter().enumerate() {
            let left = MARGIN + 170 * at as i32;
            root.draw(&bar(at, (left, 38), (left + 10, 48)))?;
            root.draw(&Text::new(
                format!("over {name}"),
                (left + 16, 37),
                text(12),
            ))?;
        }
        let tops = (TOP..).step_by(group.unsigned_abs() as usize);
        for (row, top) in rows.iter().zip(tops) {
            root.draw(&Text::new(row.what.as_str(), (MARGIN, top), text(12)))?;
            for (at, lead) in row.leads().into_iter().enumerate() {
                let top = top + BAR * at as i32;
                let label = lead.map_or_else(|| "-".to_owned(), |lead| format!("{lead:.2}"));
                let right = NAMES + lead.map_or(0, length);
                root.draw(&bar(at, (NAMES, top), (right, top + BAR - 2)))?;
                root.draw(&Text::new(label, (right + 6, top), text(11)))?;
            }
        }
        let even = NAMES + length(1.0);
        root.draw(&PathElement::new(
            vec![(even, TOP - 6), (even, bottom)],
            BLACK,
        ))?;
        root.present()?;
        Ok(())
    };
    drawn()
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("cannot draw {}", file.display()))
}

fn bar(at: usize, from: (i32, i32), to: (i32, i32)) -> Rectangle<(i32, i32)> {
    let colour = COLOURS.get(at % COLOURS.len()).unwrap_or(&BLACK);
    Rectangle::new([from, to], colour.filled())
}

/// A bar's length in pixels. A hundred times better is as long as there is room for.
fn length(lead: f64) -> i32 {
    let room = f64::from(WIDTH as i32 - NAMES - 4 * MARGIN);
    let share = (lead.log10() + 1.0) / 3.0;
    (share.clamp(0.01, 1.0) * room) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Beside, Better, Row};

    #[test]
    fn a_bar_is_as_long_as_the_lead() {
        let comparison = |names: &[&'static str]| Comparison {
            about: "",
            names: names.to_vec(),
            beside: Beside::Lead,
            rows: vec![Row {
                what: "to init".to_owned(),
                better: Better::Less,
                decimals: 0,
                runs: vec![vec![2.0], vec![5.0], vec![]],
            }],
        };
        assert!(length(1.0) < length(2.0) && length(2.0) < length(1e9));
        assert!(length(0.0) > 0);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plot.svg");
        draw(&file, "a start", &[&comparison(&["Orlop", "b", "c"])]).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        for part in ["a start", "over b", "to init", "2.50"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(draw(&file, "nobody else", &[&comparison(&["Orlop"])]).is_err());
        assert!(draw(&file, "nothing", &[]).is_err());
        let nowhere = directory.path().join("no/plot.svg");
        assert!(draw(&nowhere, "", &[&comparison(&["Orlop", "b"])]).is_err());
    }
}
