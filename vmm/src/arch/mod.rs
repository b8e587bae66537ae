//! What depends on the processor's architecture. There is one.

pub mod x86_64;
