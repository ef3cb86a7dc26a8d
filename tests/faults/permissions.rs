//! A broker's user that lacks a permission, and what operators and sessions see of it.

use serde_json::json;

use support::broker::Broker;
use support::client::subscribe;
use support::events::ACCOUNT;
use support::server::{BROKER_PATIENCE, Server, wait_within};

#[test]
fn readyz_says_which_permission_is_missing_until_it_is_given() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let url = format!("amqp://limited:hunter2@127.0.0.1:{}/%2f", broker.port());
    broker.ctl(&["add_user", "limited", "hunter2"]);
    broker.ctl(&["set_permissions", "limited", "^$", ".*", ".*"]);
    let server = Server::unready(&url, &["--auth", "insecure"]);
    let until_said = |status: u16, piece: &str| {
        wait_within(BROKER_PATIENCE, piece, || {
            let (found, body) = server.page("/readyz");
            (found == status && body.contains(piece)).then_some(body)
        })
    };
    until_said(
        503,
        "has no configure permission on queues (blackhole.…) in vhost \"/\"\n",
    );
    let reply = server.client().ask(&subscribe("any", ACCOUNT, "call.*.*"));
    assert_eq!(reply["data"]["errors"], json!(["event source unavailable"]));
    // Some exchanges cannot be read: the others serve.
    broker.ctl(&[
        "set_permissions",
        "limited",
        ".*",
        ".*",
        "^(blackhole\\..*|callevt)$",
    ]);
    let body = until_said(
        200,
        "has no read permission on exchange 'faxes' in vhost \"/\"\n",
    );
    assert!(
        body.starts_with("ready\n") && !body.contains("callevt"),
        "{body}"
    );
    server.client().must_subscribe("any", ACCOUNT, "call.*.*");
    let reply = server
        .client()
        .ask(&subscribe("any", ACCOUNT, "fax.status.one"));
    assert_eq!(reply["status"], "error", "{reply}");
    broker.ctl(&["set_permissions", "limited", ".*", ".*", ".*"]);
    wait_within(BROKER_PATIENCE, "nothing is missing", || {
        (server.page("/readyz") == (200, "ready\n".to_owned())).then_some(())
    });
    assert_eq!(server.metric("amqp_permissions_missing"), 0);
    assert!(!server.log().contains("hunter2"), "{}", server.log());
}
