//! Every binding family, from what a client asks for to the frames it gets (PROTOCOL 6).

use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, errors};
use support::events::{
    ACCOUNT, OTHER_ACCOUNT, PARENT_ACCOUNT, call_event, database, events_until_marker, kazoo_data,
    month_database, subscribe_to_marker,
};
use support::server::{Fed, Scratch};

#[test]
fn document_events_carry_their_type_in_the_name_and_both_spellings_bind_them() {
    let mut fed = Fed::insecure(&[]);
    let address = fed.server.address();
    let mut piston = Client::connect(address);
    let mut kazoo = Client::connect_with(address, "/?style=kazoo", &[]);
    for client in [&mut piston, &mut kazoo] {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "doc_created.*.user.*");
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "object.doc_created.user");
        subscribe_to_marker(client, ANY_TOKEN, ACCOUNT);
    }
    let body = json!({"Event-Category": "configuration", "Event-Name": "doc_created", "Type": "user", "ID": "u1"});
    let (mine, others) = (database(ACCOUNT), database(OTHER_ACCOUNT));
    for key in [
        format!("doc_created.{others}.user.u1"),
        format!("doc_edited.{mine}.user.u1"),
        format!("doc_created.{mine}.device.u1"),
        format!("doc_created.{mine}.user.u1"),
    ] {
        fed.publish("configuration", &key, &body);
    }
    for (client, name, content) in [
        (&mut piston, "doc_created_user", "args"),
        (&mut kazoo, "doc_created", "data"),
    ] {
        let events = events_until_marker(&mut fed, ACCOUNT, client);
        let mut by = texts(&events, ["/subscribed_key"]);
        by.sort_unstable();
        assert_eq!(by, [["doc_created.*.user.*"], ["object.doc_created.user"]]);
        for event in &events {
            assert_eq!(event["name"], name);
            assert_eq!(event["routing_key"], format!("doc_created.{mine}.user.u1"));
            assert_eq!(
                event["subscription_key"],
                format!("doc_created.{mine}.user.*")
            );
            let expected = if content == "args" {
                body.clone()
            } else {
                kazoo_data(&body)
            };
            assert_eq!(event[content], expected);
        }
    }
}

#[test]
fn documents_of_a_month_come_from_the_months_database() {
    let mut fed = Fed::insecure(&["--extra-doc-types", "widget"]);
    let mut client = Client::connect(fed.server.address());
    for binding in [
        "object.doc_edited.mailbox_message",
        "fax.object.doc_created",
        "object.doc_deleted.*",
        "object.*.widget",
    ] {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, binding);
    }
    subscribe_to_marker(&mut client, ANY_TOKEN, ACCOUNT);
    let (whole, month) = (database(ACCOUNT), month_database(ACCOUNT));
    for key in [
        format!("doc_edited.{month}.mailbox_message.m"),
        format!("doc_edited.{whole}.mailbox_message.not-there"),
        format!("doc_created.{month}.fax.f"),
        format!("doc_created.{whole}-199901.fax.long-gone"),
        format!("doc_deleted.{month}.fax.f"),
        format!("doc_deleted.{whole}.user.u"),
        format!("doc_edited.{whole}.widget.w"),
    ] {
        fed.publish(
            "configuration",
            &key,
            &json!({"Event-Name": "doc", "Type": "t", "Key": key}),
        );
    }
    let events = events_until_marker(&mut fed, ACCOUNT, &mut client);
    let seen = texts(&events, ["/subscribed_key", "/args/Key"]);
    let (mailbox, fax) = (
        "object.doc_edited.mailbox_message",
        "fax.object.doc_created",
    );
    let (deleted, widget) = ("object.doc_deleted.*", "object.*.widget");
    let expected = [
        [mailbox, &format!("doc_edited.{month}.mailbox_message.m")],
        [fax, &format!("doc_created.{month}.fax.f")],
        [deleted, &format!("doc_deleted.{month}.fax.f")],
        [deleted, &format!("doc_deleted.{whole}.user.u")],
        [widget, &format!("doc_edited.{whole}.widget.w")],
    ];
    assert_eq!(seen, expected);
}

#[test]
fn conference_events_come_in_their_new_and_their_old_form_and_commands_by_their_id() {
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect(fed.server.address());
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "conference.event.room.*");
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "conference.event.add-member.room.*");
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "conference.command.room");
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "conference.command.the room");
    subscribe_to_marker(&mut client, ANY_TOKEN, ACCOUNT);
    let event = |account: &str, number: usize| json!({"Event-Name": "event", "Event": "add-member", "Account-ID": account, "Number": number});
    for (key, account, number) in [
        (
            format!("conference.event.add-member.{ACCOUNT}.room.c1"),
            ACCOUNT,
            0,
        ),
        (
            format!("conference.event.del-member.{ACCOUNT}.room.c1"),
            ACCOUNT,
            1,
        ),
        ("conference.event.room.c1".to_owned(), ACCOUNT, 2),
        ("conference.event.room.c1".to_owned(), OTHER_ACCOUNT, 3),
        (
            format!("conference.event.add-member.{OTHER_ACCOUNT}.room.c1"),
            ACCOUNT,
            4,
        ),
        (
            format!("conference.event.add-member.{ACCOUNT}.elsewhere.c1"),
            ACCOUNT,
            5,
        ),
        ("conference.command.room".to_owned(), OTHER_ACCOUNT, 6),
        ("conference.command.elsewhere".to_owned(), ACCOUNT, 7),
        ("conference.command.the+room".to_owned(), ACCOUNT, 8),
        ("conference.command.the room".to_owned(), ACCOUNT, 9),
    ] {
        fed.publish("conference", &key, &event(account, number));
    }
    let events = events_until_marker(&mut fed, ACCOUNT, &mut client);
    let mut seen: Vec<(u64, &str, &str)> = events
        .iter()
        .map(|event| {
            let text = |key: &str| event[key].as_str().unwrap();
            (
                event["args"]["Number"].as_u64().unwrap(),
                text("subscribed_key"),
                text("subscription_key"),
            )
        })
        .collect();
    seen.sort_unstable();
    let any = format!("conference.event.*.{ACCOUNT}.room.*");
    let added = format!("conference.event.add-member.{ACCOUNT}.room.*");
    let (by_room, by_event) = (
        "conference.event.room.*",
        "conference.event.add-member.room.*",
    );
    let expected = [
        (0, by_event, &*added),
        (0, by_room, &*any),
        (1, by_room, &*any),
        (2, by_room, &*any),
        (6, "conference.command.room", "conference.command.room"),
        (
            9,
            "conference.command.the room",
            "conference.command.the room",
        ),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn presence_and_registrations_are_those_of_the_accounts_realm() {
    let tokens = json!({
        "mine": {"account_id": ACCOUNT, "realm": "one.example.com"},
        "theirs": {"account_id": OTHER_ACCOUNT, "realm": "two.example.com"},
        "none": {"account_id": PARENT_ACCOUNT},
    });
    let mut fed = Fed::with_tokens(&tokens, &[]);
    let address = fed.server.address();
    let bindings = [
        "presence.dialog.*",
        "presence.update.call-1",
        "presence.mwi_updates.*",
        "registration.success",
    ];
    let mut without = Client::connect_as(address, "none");
    for binding in bindings {
        let refused = without.subscribe("none", PARENT_ACCOUNT, binding);
        assert_eq!(
            errors(&refused),
            ["no available subscriptions to requested binding"],
            "{binding}"
        );
    }
    let mut mine = Client::connect_as(address, "mine");
    for binding in bindings {
        mine.must_subscribe("mine", ACCOUNT, binding);
    }
    subscribe_to_marker(&mut mine, "mine", ACCOUNT);
    let (one, two) = ("one%2Eexample%2Ecom", "two%2Eexample%2Ecom");
    for realm in [two, one] {
        for (exchange, key) in [
            ("presence", format!("dialog.{realm}.call-9")),
            ("presence", format!("update.{realm}.call-1")),
            ("presence", format!("update.{realm}.call-2")),
            ("presence", format!("mwi_updates.{realm}.user")),
            ("registrar", format!("registration.success.{realm}.user")),
        ] {
            fed.publish(exchange, &key, &json!({"Event-Name": "e"}));
        }
    }
    let events = events_until_marker(&mut fed, ACCOUNT, &mut mine);
    let seen = texts(
        &events,
        ["/subscribed_key", "/subscription_key", "/routing_key"],
    );
    let expected = [
        ("dialog", "*", "call-9"),
        ("update", "call-1", "call-1"),
        ("mwi_updates", "*", "user"),
        ("registration.success", "*", "user"),
    ]
    .map(|(kind, wanted, sent)| [wanted, sent].map(|word| format!("{kind}.{one}.{word}")));
    for ((seen, binding), [subscription_key, routing_key]) in
        seen.iter().zip(bindings).zip(&expected)
    {
        assert_eq!(*seen, [binding, subscription_key, routing_key]);
    }
    assert_eq!(seen.len(), bindings.len());
}

#[test]
fn fax_status_is_that_of_the_account_in_its_key() {
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect(fed.server.address());
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "fax.status.*");
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "fax.status.job-2");
    subscribe_to_marker(&mut client, ANY_TOKEN, ACCOUNT);
    for (account, job) in [
        (OTHER_ACCOUNT, "job-2"),
        (ACCOUNT, "job-1"),
        (ACCOUNT, "job-2"),
    ] {
        // The account of the key counts, not that of the body.
        let body = json!({"Event-Name": "status", "Account-ID": ACCOUNT});
        fed.publish("faxes", &format!("fax.status.{account}.{job}"), &body);
    }
    let events = events_until_marker(&mut fed, ACCOUNT, &mut client);
    let mut seen = texts(&events, ["/routing_key", "/subscribed_key"]);
    seen.sort_unstable();
    let [one, two] = ["job-1", "job-2"].map(|job| format!("fax.status.{ACCOUNT}.{job}"));
    let expected = [
        [&*one, "fax.status.*"],
        [&*two, "fax.status.*"],
        [&*two, "fax.status.job-2"],
    ];
    assert_eq!(seen, expected);
}

#[test]
fn an_operators_own_family_works_like_the_platforms() {
    let config = Scratch::file(
        "blackhole.json",
        &json!({"families": [{
            "name": "queue", "binding": "queue.{event}.{queue}", "exchange": "acdc",
            "keys": ["acdc.{event}.{account}.{queue}"],
            "words": {"event": ["joined", "left"]}, "required": {"queue": "QueueId required"},
        }]})
        .to_string(),
    );
    let mut fed = Fed::insecure(&["--config", config.path().to_str().unwrap()]);
    let mut client = Client::connect(fed.server.address());
    for (binding, error) in [
        ("queue.joined.*", "QueueId required"),
        ("queue.other.q1", "event other not supported"),
        (
            "queue.joined",
            "invalid format for queue subscription : joined",
        ),
    ] {
        assert_eq!(
            errors(&client.subscribe(ANY_TOKEN, ACCOUNT, binding)),
            [error]
        );
    }
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "queue.*.q1");
    subscribe_to_marker(&mut client, ANY_TOKEN, ACCOUNT);
    for (event, account, queue) in [
        ("joined", ACCOUNT, "q1"),
        ("joined", OTHER_ACCOUNT, "q1"),
        ("joined", ACCOUNT, "q2"),
        ("left", ACCOUNT, "q1"),
        ("paused", ACCOUNT, "q1"),
    ] {
        fed.publish(
            "acdc",
            &format!("acdc.{event}.{account}.{queue}"),
            &json!({"Event-Name": event}),
        );
    }
    let events = events_until_marker(&mut fed, ACCOUNT, &mut client);
    assert_eq!(texts(&events, ["/name"]), [["joined"], ["left"]]);
    assert_eq!(
        events[0]["subscription_key"],
        format!("acdc.*.{ACCOUNT}.q1")
    );
}

#[test]
fn a_family_that_is_off_has_no_subscriptions() {
    let mut fed = Fed::insecure(&[
        "--autoload-modules",
        "bh_call,bh_fax",
        "--channel-events",
        "CHANNEL_HOLD,CUSTOM",
    ]);
    let mut client = Client::connect(fed.server.address());
    for binding in [
        "conference.command.room",
        "object.doc_created.user",
        "presence.dialog.*",
        "dialog.*",
        "registration.success",
    ] {
        let refused = client.subscribe(ANY_TOKEN, ACCOUNT, binding);
        assert_eq!(
            errors(&refused),
            ["no available subscriptions to requested binding"],
            "{binding}"
        );
    }
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "fax.status.*");
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CUSTOM.*");
    let refused = client.subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    assert_eq!(
        errors(&refused),
        ["event CHANNEL_CREATE not supported"],
        "the list of events is the operator's"
    );
    subscribe_to_marker(&mut client, ANY_TOKEN, ACCOUNT);
    for event in ["CHANNEL_CREATE", "CUSTOM"] {
        fed.publish(
            "callevt",
            &format!("call.{event}.x"),
            &call_event(ACCOUNT, event, 0),
        );
    }
    let events = events_until_marker(&mut fed, ACCOUNT, &mut client);
    assert_eq!(texts(&events, ["/name"]), [["CUSTOM"]]);
}

/// The texts of each event at these JSON pointers.
fn texts<'e, const N: usize>(events: &'e [Value], pointers: [&str; N]) -> Vec<[&'e str; N]> {
    let text = |event: &'e Value, pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let row = |event| pointers.map(|pointer| text(event, pointer).unwrap());
    events.iter().map(row).collect()
}
