//! The pod's containers by id, including those that are still being made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::container::Container;

/// The containers.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<String, Entry>>);

enum Entry {
    /// Somebody makes it.
    Reserved {
        in_vm: bool,
    },
    Ready(Arc<Container>),
}

impl Entry {
    fn in_vm(&self) -> bool {
        match self {
            Entry::Reserved { in_vm } => *in_vm,
            Entry::Ready(container) => container.vm().is_some(),
        }
    }
}

/// An id that is taken for a container in the making; free again when dropped.
pub struct Reservation<'a> {
    registry: &'a Registry,
    id: String,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `id` for a container that will run in the VM (`in_vm`) or not. Answers nothing when it is taken.
    pub fn reserve(&self, id: &str, in_vm: bool) -> Option<Reservation<'_>> {
        let mut entries = self.lock();
        if entries.contains_key(id) {
            return None;
        }
        entries.insert(id.to_owned(), Entry::Reserved { in_vm });
        Some(Reservation {
            registry: self,
            id: id.to_owned(),
        })
    }

    /// The container `id`, once it is made.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        match self.lock().get(id) {
            Some(Entry::Ready(container)) => Some(container.clone()),
            _ => None,
        }
    }

    /// Forgets the container `id`.
    pub fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Whether there is nothing, not even in the making.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether no container but `except` is in the VM, or will be.
    pub fn none_in_vm_but(&self, except: &str) -> bool {
        self.lock()
            .iter()
            .all(|(id, entry)| id == except || !entry.in_vm())
    }

    /// The CRI sandbox's own container.
    pub fn sandbox(&self) -> Option<Arc<Container>> {
        self.lock().values().find_map(|entry| match entry {
            Entry::Ready(container) if container.vm().is_none() => Some(container.clone()),
            _ => None,
        })
    }
}

impl Reservation<'_> {
    /// Puts the container in its place.
    pub fn fill(self, container: Arc<Container>) {
        self.registry
            .lock()
            .insert(self.id.clone(), Entry::Ready(container));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut entries = self.registry.lock();
        if matches!(entries.get(&self.id), Some(Entry::Reserved { .. })) {
            entries.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_free_again_when_its_making_failed() {
        let registry = Registry::default();
        let sandbox = registry.reserve("s", false).unwrap();
        let first = registry.reserve("c", true).unwrap();
        assert!(registry.reserve("c", true).is_none());
        assert!(registry.get("c").is_none(), "not made yet");
        assert!(registry.none_in_vm_but("c"));
        assert!(!registry.none_in_vm_but("s"));
        drop(first);
        assert!(registry.none_in_vm_but(""));
        assert!(registry.reserve("c", true).is_some());
        sandbox.fill(Arc::new(Container::sandbox(
            "s",
            "/b".into(),
            Default::default(),
        )));
        assert!(registry.get("s").is_some());
        assert!(registry.sandbox().is_some());
        assert!(!registry.is_empty());
        registry.remove("s");
        assert!(registry.is_empty());
    }
}
