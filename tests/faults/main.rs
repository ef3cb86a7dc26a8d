//! What fails around the server, and what its sessions notice of it: the real binary, real websocket clients, a
//! private RabbitMQ, a network that a proxy breaks, and limits of the system.
//!
//! | module | what fails |
//! |---|---|
//! | `broker` | RabbitMQ: killed, frozen, short of memory, its operator ends what is ours |
//! | `cluster` | the node of a RabbitMQ cluster that the server is on |
//! | `permissions` | what the broker's user may do |
//! | `network` | the way to the broker, and the way to a client |
//! | `clients` | those that die in the middle of a fan-out |
//! | `resources` | descriptors and memory |
//! | `resume` | servers, one after the other, and the connections of clients that resume |
#![allow(
    clippy::unwrap_used,
    reason = "a test whose peer answers otherwise must fail"
)]

mod broker;
mod clients;
mod cluster;
mod network;
mod permissions;
mod resources;
mod resume;
mod scene;
