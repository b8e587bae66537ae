//! Tells what comes to be in a directory, as a program learns it that reads its configuration anew.

use std::io;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Prints `watching`, then a name for each entry that is made or moved there, without end.
pub fn tell(directory: &str) -> io::Result<()> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    watch.add_watch(
        directory,
        AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO,
    )?;
    println!("watching");
    loop {
        for name in watch
            .read_events()?
            .into_iter()
            .filter_map(|event| event.name)
        {
            println!("{}", name.display());
        }
    }
}
