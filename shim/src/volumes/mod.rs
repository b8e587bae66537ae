//! Volumes that the guest is given copies of: ConfigMaps, Secrets and what else is small and changes as a whole.
//!
//! Through the share they would change as well, but without a word to the guest's kernel, and so to a program that waits for
//! the change (inotify): virtio-fs has no such message. A copy changes by operations in the guest, which its kernel tells.
//!
//! The shim notices a change by looking, not by inotify of its own: a machine has as few as 128 instances of that for
//! all of root's programs (`fs.inotify.max_user_instances`), the kubelet among them.

mod tree;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use orlop_proto::agent::v1::{self as agent, UpdateVolumeRequest};

use self::tree::Stamp;
use crate::sandbox::Vm;
use crate::spec;

/// How often the volumes are looked at. The kubelet itself may take a minute to swap one.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the guest may take for an update.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(10);
/// For all of a container's volumes together: they go with its creation as one message, of 4 MiB at most. A ConfigMap has 1 MiB at most.
const ROOM: Room = Room {
    bytes: 3 << 20,
    entries: 2048,
};

/// A directory of the host, and what was in it.
#[derive(Debug)]
pub struct Volume {
    /// The directory.
    pub source: PathBuf,
    /// What tells whether it has changed since.
    stamp: Stamp,
    /// What was in it; nothing once the guest has it.
    pub content: agent::Volume,
    /// Whether it was said that the copy is out of date.
    out_of_date: bool,
}

/// What may still be copied for a container.
#[derive(Debug)]
struct Room {
    bytes: usize,
    entries: usize,
}

/// The volumes of a spec that are small enough. The others are shared, as all that cannot be read is: whoever shares it will say why.
pub fn of(spec: &Spec) -> Vec<Volume> {
    let mut room = ROOM;
    let read = |source: PathBuf| {
        // Before the content: a change in between is noticed later.
        let stamp = Stamp::of(&source).ok()?;
        let (content, left) = tree::read(&source, &room).ok()??;
        room = left;
        Some(Volume {
            source,
            stamp,
            content,
            out_of_date: false,
        })
    };
    spec::watched(spec).into_iter().filter_map(read).collect()
}

/// Brings the copies of a container's volumes up to date as long as its VM lives, or until this is dropped.
pub async fn follow(container: String, mut volumes: Vec<Volume>, vm: Arc<Vm>) {
    // The guest has it by now; the shim lives as long as the pod.
    for volume in &mut volumes {
        volume.content = agent::Volume::default();
    }
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = vm.ended() => return,
            _ = ticks.tick() => {}
        }
        for (number, volume) in (0..).zip(&mut volumes) {
            let updated = match news(volume).await {
                None => continue,
                Some((_, None)) => Err("it has become too large for one".to_owned()),
                Some((stamp, content)) => {
                    let update = UpdateVolumeRequest {
                        container: container.clone(),
                        number,
                        volume: content,
                    };
                    let mut agent = vm.agent();
                    let updated = vm.call_within(UPDATE_TIMEOUT, agent.update_volume(update));
                    let updated = updated.await.map_err(|failure| failure.to_string());
                    updated.map(|_| volume.stamp = stamp)
                }
            };
            // A failure is not the last word: the next look finds the same change.
            if let (Err(why), false) = (&updated, volume.out_of_date) {
                let source = volume.source.display();
                log::warn!("{source}: the copy of container {container} is out of date: {why}");
            }
            volume.out_of_date = updated.is_err();
        }
    }
}

/// What has come to be in a volume, if that has changed; no content if there is too much of it.
async fn news(volume: &Volume) -> Option<(Stamp, Option<agent::Volume>)> {
    let (source, seen) = (volume.source.clone(), volume.stamp.clone());
    let looking = tokio::task::spawn_blocking(move || {
        // One that is not there any more goes with its pod.
        let stamp = Stamp::of(&source).ok().filter(|stamp| *stamp != seen)?;
        // In the middle of a swap it cannot be read; the next look finds what it has become.
        let read = tree::read(&source, &ROOM).ok()?;
        Some((stamp, read.map(|(content, _)| content)))
    });
    looking.await.ok().flatten()
}
