//! The kernel's machine for filters, as far as filters use it.

/// A system call, as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub number: u32,
    pub architecture: u32,
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let mut bytes = Vec::new();
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.architecture.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(self.arguments.iter().flat_map(|it| it.to_le_bytes()));
        let offset = offset as usize;
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }
}

/// What the program returns for a call.
pub fn run(program: &[libc::sock_filter], call: Call) -> u32 {
    let (mut at, mut a) = (0, 0);
    loop {
        let instruction = program[at];
        let k = instruction.k;
        at += 1;
        let holds = match instruction.code {
            0x20 => {
                a = call.word(k);
                continue;
            }
            0x54 => {
                a &= k;
                continue;
            }
            0x05 => {
                at += k as usize;
                continue;
            }
            0x06 => return k,
            0x15 => a == k,
            0x25 => a > k,
            0x35 => a >= k,
            code => panic!("{code:#x}"),
        };
        at += usize::from(if holds {
            instruction.jt
        } else {
            instruction.jf
        });
    }
}
