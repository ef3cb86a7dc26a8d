//! What the tests of several binaries share, and the benches too.
#![allow(
    missing_docs,
    reason = "a harness: its items are named for what they do"
)]
#![allow(
    clippy::missing_panics_doc,
    reason = "a test that cannot be set up must fail"
)]
#![allow(clippy::missing_errors_doc, reason = "as above")]
#![allow(clippy::unwrap_used, reason = "as above")]

pub mod broker;
pub mod certificates;
pub mod client;
pub mod client_frame;
pub mod events;
pub mod left_out;
pub mod looker;
pub mod mute_broker;
pub mod numbered;
pub mod own_process;
pub mod platform_api;
pub mod publisher;
pub mod schemas;
pub mod scripted;
pub mod scripted_tls;
pub mod server;
pub mod tcp_proxy;
pub mod tls;
pub mod tokens;
pub mod wire;

use std::path::{Path, PathBuf};

/// A file of the project by its path from the top.
#[must_use]
pub fn project_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}
