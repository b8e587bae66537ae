//! The header that every packet begins with (virtio 1.2, 5.10.6).

use super::super::GuestMemory;
use super::super::queue::{Chain, Error};

/// Its length in bytes.
pub const HEADER_LEN: usize = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM: bytes in order, which is all that there is here.
pub const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Refuses or ends it.
    Rst = 3,
    /// Ends one direction, or both.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Says how much may be sent.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        [
            Op::Request,
            Op::Response,
            Op::Rst,
            Op::Shutdown,
            Op::Rw,
            Op::CreditUpdate,
            Op::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// A header; what the guest wrote is not checked here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's context id.
    pub src_cid: u64,
    /// The receiver's context id.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// The number of bytes that follow the header.
    pub len: u32,
    /// The socket's type.
    pub kind: u16,
    /// The operation's number.
    pub op: u16,
    /// Of an operation.
    pub flags: u32,
    /// How much the sender can hold, in bytes.
    pub buf_alloc: u32,
    /// How much of what it ever received the sender has passed on; wraps.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the header of a packet from the guest, once.
    ///
    /// # Errors
    /// When the chain is shorter than a header, or than what the header says.
    pub fn read(chain: &Chain, memory: &GuestMemory) -> Result<Self, Error> {
        let mut bytes = [0; HEADER_LEN];
        chain.read_at(memory, 0, &mut bytes)?;
        let header = Self::from_bytes(&bytes);
        let need = HEADER_LEN.saturating_add(header.len as usize);
        let have = chain.readable_len();
        if have < need {
            return Err(Error::Short { need, have });
        }
        Ok(header)
    }

    fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Header {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// As it stands in memory.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields = self
            .src_cid
            .to_le_bytes()
            .into_iter()
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.kind.to_le_bytes())
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (place, byte) in bytes.iter_mut().zip(fields) {
            *place = byte;
        }
        bytes
    }
}

/// Takes one field after the other from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field; zeros behind the end.
    fn next<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_stand_where_the_specification_says() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes: Vec<u8> = (1..=44).collect();
        assert_eq!(header.to_bytes().to_vec(), bytes);
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
    }

    #[test]
    fn operations_have_their_numbers() {
        assert_eq!(Op::from_number(0), None);
        assert_eq!(Op::from_number(1), Some(Op::Request));
        assert_eq!(Op::from_number(7), Some(Op::CreditRequest));
        assert_eq!(Op::from_number(8), None);
    }
}
