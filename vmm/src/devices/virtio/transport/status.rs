//! The device status and the queues' configuration, as both transports have them (virtio 1.2, 2.1, 3.1, 4.1.4.3).
//!
//! What may be written when is decided here and nowhere else: features only before FEATURES_OK, queues only before DRIVER_OK and
//! before they are enabled.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::interrupt::STATUS_NEEDS_RESET;
use crate::devices::virtio::queue::{Layout, Queue};
use crate::devices::virtio::{
    Active, ActiveQueue, Device, F_RING_EVENT_IDX, F_VERSION_1, Fault, GuestMemory, Interrupt, Kind,
};

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const FAILED: u8 = 128;

/// VIRTIO_MSI_NO_VECTOR.
pub const NO_VECTOR: u16 = 0xffff;

/// A queue as the driver lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The number of descriptors.
    pub size: u16,
    /// Whether it is enabled.
    pub enabled: bool,
    /// The vector for its interrupts.
    pub vector: u16,
    /// Where the descriptor table is.
    pub descriptors: u64,
    /// Where the driver area is.
    pub driver: u64,
    /// Where the device area is.
    pub device: u64,
}

impl QueueConfig {
    /// A queue that the device does not have: its size is 0 (virtio 1.2, 4.1.4.3).
    pub const ABSENT: QueueConfig = QueueConfig {
        size: 0,
        enabled: false,
        vector: NO_VECTOR,
        descriptors: 0,
        driver: 0,
        device: 0,
    };
}

/// A device and all that its driver has configured.
pub struct Machine {
    device: Box<dyn Device>,
    memory: Arc<GuestMemory>,
    status: Arc<AtomicU8>,
    driver_features: u64,
    queues: Vec<QueueConfig>,
    kicks: Vec<EventFd>,
    /// The vector for configuration changes.
    pub config_vector: u16,
}

impl Machine {
    /// Before the driver has done anything.
    ///
    /// # Errors
    /// When an eventfd cannot be had.
    pub fn new(device: Box<dyn Device>, memory: Arc<GuestMemory>) -> std::io::Result<Self> {
        let kicks = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<std::io::Result<Vec<_>>>()?;
        let mut machine = Machine {
            device,
            memory,
            status: Arc::new(AtomicU8::new(0)),
            driver_features: 0,
            queues: Vec::new(),
            kicks,
            config_vector: NO_VECTOR,
        };
        machine.clear();
        Ok(machine)
    }

    /// What the device is.
    pub fn kind(&self) -> Kind {
        self.device.kind()
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.device.kind().name()
    }

    /// Its configuration space.
    pub fn config(&self) -> Cow<'_, [u8]> {
        self.device.config()
    }

    /// Which state its configuration space is in.
    pub fn config_generation(&self) -> u8 {
        self.device.config_generation()
    }

    /// By what the guest knows it.
    pub fn tag(&self) -> Option<String> {
        self.device.tag().map(Into::into)
    }

    /// What it has done.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.device.counters()
    }

    /// How many queues it has.
    pub fn queue_count(&self) -> u16 {
        self.queues.len() as u16
    }

    /// The driver kicks a queue without an ioeventfd.
    pub fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // The only failure is a counter that is full, and then a kick is pending anyway.
            let _ = kick.write(1);
        }
    }

    /// The VM has ended: the device works no more.
    pub fn stop(&mut self) {
        self.device.stop();
    }

    /// Gives the device back, idle.
    pub fn into_device(mut self) -> Box<dyn Device> {
        self.device.stop();
        self.device
    }

    /// The kicks, in the order of the queues.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1
    }

    /// What the driver has taken.
    pub fn taken(&self) -> u64 {
        self.driver_features
    }

    /// The driver writes one half of its features.
    pub fn take(&mut self, half: u32, value: u32) {
        if self.status() & FEATURES_OK != 0 || half > 1 {
            return;
        }
        let shift = 32 * half;
        let mask = u64::from(u32::MAX) << shift;
        self.driver_features = (self.driver_features & !mask) | (u64::from(value) << shift);
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// A queue's configuration.
    pub fn queue(&self, index: u16) -> Option<&QueueConfig> {
        self.queues.get(usize::from(index))
    }

    /// Changes a queue's configuration, where that is allowed: before DRIVER_OK, and before the queue is enabled. A queue whose size
    /// could change under a running device is how a guest once got out of another VMM (CVE-2026-5747).
    pub fn change_queue(&mut self, index: u16, change: impl FnOnce(&mut QueueConfig)) {
        if self.status() & DRIVER_OK != 0 {
            return;
        }
        if let Some(queue) = self.queues.get_mut(usize::from(index))
            && !queue.enabled
        {
            change(queue);
        }
    }

    /// The driver writes to the configuration space.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// The driver writes the status. `event` gives the event of a vector.
    pub fn set_status(&mut self, value: u8, event: impl Fn(u16) -> Interrupt) {
        let before = self.status();
        if value == 0 {
            self.reset();
            return;
        }
        // Bits are only ever added, and NEEDS_RESET is ours.
        let known = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
        let mut new = before | (value & known);
        if new & !before & FEATURES_OK != 0 && !self.features_agree() {
            new &= !FEATURES_OK;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status.fetch_or(new, Ordering::SeqCst);
        if new & !before & DRIVER_OK != 0 && before & STATUS_NEEDS_RESET == 0 {
            self.start(event);
        }
    }

    fn features_agree(&self) -> bool {
        let taken = self.driver_features;
        let required = self.device.required_features() | F_VERSION_1;
        taken & !self.offered() == 0 && taken & required == required
    }

    fn start(&mut self, event: impl Fn(u16) -> Interrupt) {
        let config_changed = event(self.config_vector);
        let fault = Fault::new(
            self.device.kind().name(),
            self.status.clone(),
            config_changed.clone(),
        );
        match self.active(&fault, config_changed, event) {
            Ok(active) => {
                if let Err(error) = self.device.start(active) {
                    fault.raise(&error);
                }
            }
            Err(error) => fault.raise(error.as_ref()),
        }
    }

    fn active(
        &self,
        fault: &Fault,
        config_changed: Interrupt,
        event: impl Fn(u16) -> Interrupt,
    ) -> Result<Active, Box<dyn std::error::Error>> {
        let event_idx = self.driver_features & F_RING_EVENT_IDX != 0;
        let mut queues = Vec::new();
        let sizes = self.device.queue_sizes();
        for ((config, kick), max) in self.queues.iter().zip(&self.kicks).zip(sizes) {
            if !config.enabled {
                queues.push(None);
                continue;
            }
            let layout = Layout {
                size: config.size,
                descriptors: GuestAddress(config.descriptors),
                driver: GuestAddress(config.driver),
                device: GuestAddress(config.device),
            };
            queues.push(Some(ActiveQueue {
                queue: Queue::new(*max, layout, event_idx, &self.memory)?,
                kick: kick.try_clone()?,
                interrupt: event(config.vector),
            }));
        }
        Ok(Active {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            fault: fault.clone(),
            config_changed,
        })
    }

    fn reset(&mut self) {
        self.device.stop();
        self.clear();
    }

    fn clear(&mut self) {
        self.status.store(0, Ordering::SeqCst);
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        let empty = |max: &u16| QueueConfig {
            size: *max,
            ..QueueConfig::ABSENT
        };
        self.queues = self.device.queue_sizes().iter().map(empty).collect();
        // Kicks from before the reset mean nothing.
        for kick in &self.kicks {
            // It fails when there was none.
            let _ = kick.read();
        }
    }
}
