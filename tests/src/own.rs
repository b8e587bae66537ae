//! The testbed's own program, which runs itself again: in a virtual host, in namespaces, as a cluster's node.

use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What the kernel puts behind the name of a program whose file has gone.
const GONE: &[u8] = b" (deleted)";

/// Its file.
///
/// # Errors
/// When the kernel does not say.
pub fn program() -> Result<PathBuf> {
    let path = env::current_exe().context("where is the testbed's own program?")?;
    Ok(place(&path))
}

/// The place of a program, as the kernel names it. When cargo builds the tests it puts the testbed there anew, from the same sources, because
/// what it is made of has more features among the tests.
fn place(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let place = bytes.strip_suffix(GONE).map(OsStr::from_bytes);
    place.map_or(path, Path::new).to_owned()
}

#[cfg(test)]
mod tests {
    use super::place;
    use std::path::Path;

    #[test]
    fn a_program_that_was_built_again_is_where_it_was() {
        for (said, is) in [
            ("/target/testbed", "/target/testbed"),
            ("/target/testbed (deleted)", "/target/testbed"),
        ] {
            assert_eq!(place(Path::new(said)), Path::new(is));
        }
    }
}
