//! What the driver is told of a network device before the first packet: the feature bits and the configuration space (virtio 1.2,
//! 5.1.3 and 5.1.4), and what the features that it takes mean for the tap.

use libc::c_uint;

use crate::devices::virtio::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC};

/// VIRTIO_NET_F_CSUM: the driver may leave checksums of what it sends to us.
pub const F_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM: the driver takes packets whose checksum is not done yet.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MTU: the driver is told the MTU.
pub const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC: the driver is told its address.
pub const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4: the driver takes TCP segments of up to 64 KiB over IPv4.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6: the same over IPv6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN: such segments may have ECN bits.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_HOST_TSO4: the driver may send TCP segments of up to 64 KiB over IPv4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6: the same over IPv6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN: such segments may have ECN bits.
pub const F_HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_MRG_RXBUF: a packet may go over several receive buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS: the driver is told whether the link is up.
pub const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_MQ: there are several pairs of queues.
pub const F_MQ: u64 = 1 << 22;
/// VIRTIO_NET_F_GUEST_USO4: the driver takes UDP datagrams of one size as one packet over IPv4.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// VIRTIO_NET_F_GUEST_USO6: the same over IPv6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// VIRTIO_NET_F_HOST_USO: the driver may send such datagrams.
pub const F_HOST_USO: u64 = 1 << 56;

/// VIRTIO_NET_S_LINK_UP.
const S_LINK_UP: u16 = 1;

/// A queue's size.
pub const QUEUE_SIZE: u16 = 256;
/// As many pairs of queues as a device has at most, and so threads.
pub const PAIRS_MAX: u16 = 16;
/// The length of `struct virtio_net_hdr` (5.1.6), which stands before each packet: in guest memory, and at the tap as well.
pub const HEADER: usize = 12;
/// What stands before the payload of an Ethernet frame, with a VLAN tag.
const ETHERNET: usize = 18;
/// The longest packet with its header: 64 KiB of segmentation offload.
pub const PACKET_MAX: usize = HEADER + ETHERNET + (1 << 16);
/// The MTU of an Ethernet, for a tap that does not say its own.
const MTU_DEFAULT: u16 = 1500;

/// What a device is like.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The guest's address.
    pub mac: [u8; 6],
    /// The tap's MTU, if it can be told.
    pub mtu: Option<u16>,
    /// How many pairs of queues there are.
    pub pairs: u16,
    /// Whether the host segments UDP as well: Linux does from 6.2 on.
    pub uso: bool,
}

impl Facts {
    /// The features that the device offers.
    pub fn features(&self) -> u64 {
        let when = |condition, features| if condition { features } else { 0 };
        let always = F_CSUM
            | F_GUEST_CSUM
            | F_MAC
            | F_GUEST_TSO4
            | F_GUEST_TSO6
            | F_GUEST_ECN
            | F_HOST_TSO4
            | F_HOST_TSO6
            | F_HOST_ECN
            | F_MRG_RXBUF
            | F_STATUS
            | F_RING_INDIRECT_DESC
            | F_RING_EVENT_IDX;
        always
            | when(self.mtu.is_some(), F_MTU)
            | when(self.pairs > 1, F_CTRL_VQ | F_MQ)
            | when(self.uso, F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO)
    }

    /// struct virtio_net_config up to mtu (5.1.4).
    pub fn space(&self, link_up: bool) -> Vec<u8> {
        let status = if link_up { S_LINK_UP } else { 0 };
        let mut space = self.mac.to_vec();
        space.extend(status.to_le_bytes());
        // max_virtqueue_pairs
        space.extend(self.pairs.to_le_bytes());
        space.extend(self.mtu.unwrap_or(0).to_le_bytes());
        space
    }

    /// How much room the longest packet takes that a driver with these features is sent.
    pub fn longest(&self, features: u64) -> usize {
        if offloads(features) & !libc::TUN_F_CSUM != 0 {
            PACKET_MAX
        } else {
            HEADER + ETHERNET + usize::from(self.mtu.unwrap_or(MTU_DEFAULT))
        }
    }
}

/// What the tap may leave undone, by TUNSETOFFLOAD, for a driver with these features. One that takes segments but no unfinished
/// checksums contradicts itself (5.1.3.1), and gets neither.
pub fn offloads(features: u64) -> c_uint {
    let took = |feature| features & feature != 0;
    if !took(F_GUEST_CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    for (feature, flag) in [
        (F_GUEST_TSO4, libc::TUN_F_TSO4),
        (F_GUEST_TSO6, libc::TUN_F_TSO6),
    ] {
        if took(feature) {
            flags |= flag;
        }
    }
    if took(F_GUEST_ECN) && flags & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) != 0 {
        flags |= libc::TUN_F_TSO_ECN;
    }
    // A tap knows them only together.
    if took(F_GUEST_USO4) && took(F_GUEST_USO6) {
        flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        mac: [2, 1, 2, 3, 4, 5],
        mtu: Some(9000),
        pairs: 4,
        uso: true,
    };

    #[test]
    fn the_space_has_the_fields_in_their_order() {
        assert_eq!(
            FACTS.space(true),
            [2, 1, 2, 3, 4, 5, 1, 0, 4, 0, 0x28, 0x23]
        );
        assert_eq!(FACTS.space(false)[6..8], [0, 0]);
    }

    #[test]
    fn what_the_host_lacks_is_not_offered() {
        let poor = Facts {
            mtu: None,
            pairs: 1,
            uso: false,
            ..FACTS
        };
        let lacking = FACTS.features() & !poor.features();
        let uso = F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO;
        assert_eq!(lacking, F_MTU | F_CTRL_VQ | F_MQ | uso);
        assert_eq!(poor.longest(0), 1530);
        assert_eq!(FACTS.longest(F_GUEST_CSUM), 9030);
        assert_eq!(FACTS.longest(F_GUEST_CSUM | F_GUEST_TSO6), PACKET_MAX);
    }

    #[test]
    fn segments_need_checksums() {
        use libc::*;
        assert_eq!(offloads(F_GUEST_TSO4 | F_GUEST_USO4 | F_GUEST_USO6), 0);
        assert_eq!(offloads(F_GUEST_CSUM | F_GUEST_ECN), TUN_F_CSUM);
        assert_eq!(offloads(F_GUEST_CSUM | F_GUEST_USO4), TUN_F_CSUM);
        assert_eq!(
            offloads(FACTS.features()),
            TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6
        );
    }
}
