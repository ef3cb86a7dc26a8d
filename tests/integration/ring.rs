//! Writing to many sockets with one system call (`io_uring`): what clients receive is the same with it, without it, and
//! where the kernel refuses it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use support::client::{ANY_TOKEN, Client};
use support::events::{ACCOUNT, large_call_event};
use support::server::{DEMO, Fed, Server, blackhole};

/// Sessions that read: more than are flushed one by one.
const READERS: usize = 24;

/// Sessions among them that do not.
const SLOW: usize = 6;

/// Size of an event that soon fills a socket.
const LARGE: usize = 32 << 10;

/// More than the kernel's buffers of a slow session and its outbox hold.
const MANY: usize = 400;

fn subscribed(mut client: Client) -> Client {
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    client
}

/// A fan-out to sessions of which some do not read and some vanish; what of the server's counts tells how it wrote.
fn fan_out(option: &str) -> u64 {
    let mut fed = Fed::insecure(&[option, "--max-outbox-bytes", "262144"]);
    let address = fed.server.address();
    let mut readers = Vec::new();
    let mut slow = Vec::new();
    let mut vanishing = Vec::new();
    for number in 0..READERS {
        readers.push(subscribed(Client::connect(address)));
        if number < SLOW {
            slow.push(subscribed(Client::connect_narrow(address)));
            vanishing.push(subscribed(Client::connect(address)));
        }
    }
    let mut number = 0;
    while number < MANY
        && fed.server.metric(r#"closes_total{reason="slow_consumer"}"#) < SLOW as u64
    {
        if number == 5 {
            vanishing.clear();
        }
        // Several at once, of which a session gets all with one write, some in part.
        for size in [10, LARGE, 1000] {
            let event = large_call_event(ACCOUNT, number, size);
            fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
            number += 1;
        }
        for reader in &mut readers {
            for expected in number - 3..number {
                let event = reader.recv();
                assert_eq!(event["args"]["Number"], expected, "{option}");
            }
        }
    }
    for slow in &mut slow {
        let (messages, code, _) = slow.read_to_close();
        assert_eq!(code, 4408, "{option}");
        for (expected, event) in messages.iter().enumerate() {
            assert_eq!(event["args"]["Number"], expected, "{option}");
        }
    }
    fed.server.wait_for_metric("sessions", READERS as u64);
    assert_eq!(fed.server.metric("outboxes_blocked_bytes"), 0);
    fed.server.metric("ring_calls_total")
}

#[test]
fn full_vanished_and_healthy_sockets_fare_alike_with_and_without_io_uring() {
    assert!(fan_out("--io-uring=true") > 0);
    assert_eq!(fan_out("--io-uring=false"), 0);
}

#[test]
fn where_the_kernel_refuses_io_uring_the_server_serves_without_it() {
    let forbidden = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let refusal = SeccompAction::Errno(libc::EPERM as u32);
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter: BpfProgram = SeccompFilter::new(forbidden, SeccompAction::Allow, refusal, arch)
        .and_then(TryInto::try_into)
        .unwrap();
    let mut command = blackhole();
    command.args(["--ip", "127.0.0.1", "--port", "0", "--admin", "127.0.0.1:0"]);
    command.args(DEMO).args(["--demo-rate", "50"]);
    #[allow(
        unsafe_code,
        reason = "what is done between fork and exec carries no promise of its own"
    )]
    // SAFETY: two system calls on memory that was made before the fork; nothing is allocated.
    unsafe {
        command.pre_exec(move || apply_filter(&filter).map_err(io::Error::other));
    }
    let server = Server::spawn(command);
    server.wait_for_log("no io_uring here");
    let mut clients: Vec<Client> = (0..READERS).map(|_| server.client()).collect();
    for client in &mut clients {
        client.must_subscribe(ANY_TOKEN, "00000000000000000000000000000001", "call.*.*");
    }
    for client in &mut clients {
        for _ in 0..5 {
            assert_eq!(client.recv()["action"], "event");
        }
    }
    assert_eq!(server.metric("ring_calls_total"), 0);
}
