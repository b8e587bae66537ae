//! The benchmarks of Orlop: Criterion micro-benchmarks of the VMM's parts and side-by-side runs against other VMMs.
//!
//! Nothing is here yet. What exists today is `cargo testbed bench`, which says where the time of a container's start goes
//! (see `docs/performance.md`).
