//! Private brokers beside each other (`scripts/broker`): ports of their own, and the end of one leaves the others alone.
//!

use std::path::Path;
use std::process::Command;
use std::thread;

use support::broker::{self, Broker};
use support::publisher::Publisher;

#[test]
fn brokers_that_start_at_once_live_beside_each_other_and_end_alone() {
    if !broker::is_there() {
        return;
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [one, other] = [(), ()]
        .map(|()| thread::spawn(Broker::start))
        .map(|starting| starting.join().unwrap());
    for port in [one.port(), other.port()] {
        assert!((20_000..32_700).contains(&port), "{port}");
    }
    assert!(one.port().abs_diff(other.port()) >= 30);

    // Who insists on ports that are taken is refused, and takes nothing along.
    let dir = tempfile::tempdir().unwrap();
    let third = Command::new(checkout.join("scripts/broker"))
        .arg("--dir")
        .arg(dir.path())
        .args(["--port", &one.port().to_string(), "start"])
        .current_dir(checkout)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert_eq!(third.status.code(), Some(1), "{said}");
    let taken = format!("the port {} is taken", one.port() + 2);
    assert!(said.contains(&taken), "{said}");
    assert!(one.ctl(&["list_queues"]).is_empty());

    drop(one);
    // The control tool finds the node by way of its port mapper.
    assert!(other.ctl(&["list_queues"]).is_empty());
    other.stop();
    other.restart();
    Publisher::connect(&other.url()).settle();
    assert!(!checkout.join("erl_crash.dump").exists());
}
