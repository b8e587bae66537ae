//! How the figure is read in what a program has said in the guest.

use anyhow::{Context, Result, bail, ensure};

use super::loads::Unit;

/// In the third version of fio's terse output (its HOWTO has the list) the fifth field is the error, and bandwidth in KiB/s and requests
/// each second are the seventh and eighth for reads, the 48th and 49th for writes.
pub fn fio(said: &str, unit: Unit) -> Result<f64> {
    let fields: Vec<_> = said.split(';').collect();
    let field = |at: usize| -> Result<f64> {
        Ok(fields.get(at).context("too few fields")?.parse::<f64>()?)
    };
    ensure!(field(4)? == 0.0, "error {}", field(4)?);
    Ok(match unit {
        Unit::Bandwidth => (field(6)? + field(47)?) / 1024.0,
        Unit::Requests => field(7)? + field(48)?,
        Unit::Packets | Unit::Files | Unit::Time => bail!("fio is not asked for these"),
    })
}

/// Those that came each second: `[ 5] 0.00-2.00 sec 1.1 MBytes 4.6 Mbits/sec 0.1 ms 100/1100 (9.1%) receiver`, of which 100 were lost.
pub fn datagrams(said: &str) -> Option<f64> {
    let (before, _) = said.split_once(" (")?;
    let (lost, sent) = before.rsplit(' ').next()?.split_once('/')?;
    let (_, end) = said.split_once(" sec")?.0.rsplit_once('-')?;
    let came = sent.parse::<f64>().ok()? - lost.parse::<f64>().ok()?;
    Some(came / end.parse::<f64>().ok()?)
}

/// `300 files, 120 hundredths` of a second.
pub fn files(said: &str) -> Option<f64> {
    let (files, time) = said.split_once(" files, ")?;
    let hundredths: f64 = time.strip_suffix(" hundredths")?.parse().ok()?;
    Some(files.parse::<f64>().ok()? / hundredths.max(1.0) * 100.0)
}
