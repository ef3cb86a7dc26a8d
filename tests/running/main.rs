//! Running it for real: what `scripts/` holds for operators (units of systemd, the starter of one process a core,
//! configurations of balancers, the package), each with the real program that reads it: `systemd-analyze`, `haproxy`,
//! `nginx`, `dpkg`.
//!
//! A binary of its own, because its tests start and stop processes by the dozen and measure times at which others
//! must be ready. What is not installed is left out, and said so; under `BLACKHOLE_LEAVE_NOTHING_OUT=1` that fails.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up, or whose peer does otherwise, must fail"
)]

mod container;
mod machine;
mod package;
mod per_core;
mod proxies;
mod proxy;
mod sandbox;
mod service;
mod systemd;
mod tools;
mod visits;
