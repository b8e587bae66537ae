//! The agent's containers, end to end on unix sockets: the same service as in a guest, run as root in namespaces of its own.

mod harness;
mod lifecycle;
mod streams;
