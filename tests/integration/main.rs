//! The server as clients, balancers, brokers and operators meet it, and the public parts of its library, in one binary:
//! a module for each subject. Most start the real program; some drive its loop on scripted sockets and a virtual clock.
//!
//! The tests run side by side in one process. So none of them sets what is the process's own (a logger, environment
//! variables, limits) or judges its memory, but in a process of its own (`support::own_process`), and each takes
//! addresses, accounts and virtual hosts that no other has. Times are upper bounds with room for a slow machine.
//!
//! What needs RabbitMQ or Python's websockets is left out where they are missing, and says so.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up, or whose peer does otherwise, must fail"
)]

mod admin_http;
mod admin_sessions;
mod admin_slices;
mod asking;
mod authenticators;
mod autobahn_seam;
mod binding_families;
mod binding_quota;
mod bridge;
mod close_codes;
mod command_limits;
mod commands;
mod compression;
mod config;
mod console;
mod control;
mod corpus;
mod crossbar;
mod ctl;
mod drain;
mod events;
mod going_away;
mod handover;
mod handshake;
#[cfg(target_env = "gnu")]
mod heap;
mod history;
mod house;
mod jwt;
mod limits;
mod liveness;
mod log;
mod look_bindings;
mod memory;
mod metrics;
mod neighbours;
mod pages;
mod picture;
mod process;
mod proxy;
mod resume;
mod rights;
mod ring;
mod routing;
mod schemas;
mod secrets;
mod secured;
mod slow_consumers;
mod source_end;
mod starvation;
mod stored;
mod stream;
mod sub;
mod sub_resume;
mod switching;
mod tls;
mod tls_config;
mod trace;
mod web_ui;
mod wire;

/// Cargo looks for no tests by itself (`autotests = false`), so a file that nothing names would never run.
#[test]
fn every_file_of_tests_belongs_to_a_binary() {
    let files = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(support::project_file(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".rs")).collect()
    };
    assert_eq!(files("tests"), [""; 0], "to be moved to tests/integration");
    for name in files("tests/integration") {
        let module = format!("\nmod {};\n", name.trim_end_matches(".rs"));
        assert!(
            name == "main.rs" || include_str!("main.rs").contains(&module),
            "{name} is no module"
        );
    }
}
