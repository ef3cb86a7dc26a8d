//! Subscribes that cannot succeed: each is told so as soon as it is known, or when its own time is over, and what comes
//! behind them on the same session does not wait for them.

use std::time::Duration;

use amiquip::ExchangeType;
use serde_json::{Value, json};

use crate::judge::{Delays, alone, assert_times};
use support::broker::Broker;
use support::client::{ANY_TOKEN, Client, Raw, errors, ping, subscribe, subscribe_to_all};
use support::events::ACCOUNT;
use support::publisher::Publisher;
use support::server::{BROKER_PATIENCE, Server, dead_address, wait_within};
use support::wire::client_text;

/// What a subscribe waits for the broker: so long that nothing that waits for it passes for an answer.
const REQUEST_TIMEOUT: [&str; 2] = ["--request-timeout-ms", "6000"];

/// What waits for no broker is there within this.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Default bound of a session.
const SUBSCRIPTIONS_MAX: usize = 256;

fn subscribe_as(request_id: &str, binding: &str) -> Value {
    let mut command = subscribe(ANY_TOKEN, ACCOUNT, binding);
    command["request_id"] = json!(request_id);
    command
}

/// How long a subscribe to something new and a ping take behind `vain`, and how long these take.
fn behind(session: &mut Client, number: usize, vain: &[String]) -> [Duration; 3] {
    let (mut all, mut good, mut pong) = (Delays::default(), Delays::default(), Delays::default());
    all.time(|| {
        let mut commands: Vec<Value> = vain
            .iter()
            .map(|binding| subscribe_as(binding, binding))
            .collect();
        commands.push(subscribe_as("good", &format!("fax.status.{number}")));
        commands.push(ping("ping"));
        good.time(|| {
            pong.time(|| {
                for command in &commands {
                    session.send(command);
                }
                assert_eq!(session.reply_to("ping")["data"]["response"], "pong");
            });
            let reply = session.reply_to("good");
            assert_eq!(reply["status"], "success", "{reply}");
        });
        for binding in vain {
            assert_eq!(
                errors(&session.reply_to(binding)),
                ["event source unavailable"]
            );
        }
    });
    [good, pong, all].map(|delays| delays.longest())
}

#[test]
fn subscribes_that_the_broker_refuses_hold_up_nothing_behind_them() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let _alone = alone();
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Direct, "conference");
    let server = Server::bridge(&broker.url(), &REQUEST_TIMEOUT);
    let mut session = server.client();
    let mut calm: Vec<_> = (0..5)
        .map(|number| behind(&mut session, number, &[]))
        .collect();
    calm.sort();
    let [calm, ..] = calm[2];
    // The first is the one by which it becomes known.
    for (round, what) in [(1, "not known yet"), (2, "known")] {
        let vain: Vec<String> = (0..3)
            .map(|number| format!("conference.command.{round}-{number}"))
            .collect();
        let beside = behind(&mut session, 10 * round, &vain);
        for (whose, beside) in ["the good subscribe", "the ping", "the refused"]
            .iter()
            .zip(beside)
        {
            assert_times(
                &format!("{whose} behind three refusals, {what}"),
                calm,
                beside,
                100.0,
            );
            assert!(beside < AT_ONCE, "{whose}: {beside:?}");
        }
    }
    // And of another session, which knows nothing of it.
    let vain = ["conference.command.other".to_owned()];
    let [.., all] = behind(&mut server.client(), 100, &vain);
    assert!(all < AT_ONCE, "{all:?}");
}

/// Commands that wait are answered when they can be; meanwhile the session is alive, and so are its pings.
#[test]
fn a_session_whose_subscribes_wait_still_answers_pings_of_both_kinds() {
    let _alone = alone();
    let (_nobody, address) = dead_address();
    let url = format!("amqp://guest:guest@{address}/%2f");
    let server = Server::unready(
        &url,
        &[&REQUEST_TIMEOUT[..], &["--auth", "insecure"]].concat(),
    );
    let mut session = server.client();
    session.assert_nothing_came(ANY_TOKEN);
    // More than 128 KiB of them, within the rate limit.
    for number in 0..90 {
        let mut command = subscribe_as(&number.to_string(), &format!("fax.status.{number}"));
        command["data"]["padding"] = json!("x".repeat(2000));
        session.send(&command);
    }
    session.set_patience(AT_ONCE);
    session.ping_pong(b"still there");
    session.send(&ping("overtakes"));
    assert_eq!(session.reply_to("overtakes")["data"]["response"], "pong");
    // All that waited is refused together, not one after another: the time of each runs from its arrival.
    session.set_patience(BROKER_PATIENCE);
    let (mut first, mut others) = (Delays::default(), Delays::default());
    let refused = ["event source unavailable"];
    first.time(|| assert_eq!(errors(&session.reply_to("0")), refused));
    others.time(|| {
        for number in 1..90 {
            let reply = session.reply_to(&number.to_string());
            assert_eq!(errors(&reply), refused, "{number}");
        }
    });
    println!(
        "the first of 90 is refused after {:?}, the others {:?} later",
        first.longest(),
        others.longest()
    );
    assert!(others.longest() < AT_ONCE, "{others}");
}

/// Whoever asks for all it can, again and again, and waits, takes no more than a session that has all it may have.
#[test]
fn subscribes_that_wait_are_bounded_as_those_that_succeed_are() {
    const SESSIONS: usize = 3;
    let _alone = alone();
    let (_nobody, address) = dead_address();
    let url = format!("amqp://guest:guest@{address}/%2f");
    let args = ["--auth", "insecure", "--request-timeout-ms", "20000"];
    let server = Server::unready(&url, &args);
    let mut sessions: Vec<Client> = (0..SESSIONS).map(|_| server.client()).collect();
    let before = server.resident_bytes();
    for (number, session) in sessions.iter_mut().enumerate() {
        for command in 0..90 {
            let bindings: Vec<String> = (0..SUBSCRIPTIONS_MAX)
                .map(|one| format!("call.*.{number}-{command}-{one}"))
                .collect();
            let bindings: Vec<&str> = bindings.iter().map(|binding| &**binding).collect();
            session.send(&subscribe_to_all(ANY_TOKEN, ACCOUNT, &bindings));
        }
    }
    // Overtakes them all, so they are all known then.
    for session in &mut sessions {
        session.send(&ping("last"));
        assert_eq!(session.reply_to("last")["data"]["response"], "pong");
    }
    let (wanted, grown) = (
        server.metric("amqp_bindings_wanted"),
        server.resident_bytes() - before,
    );
    println!(
        "the waiting: {wanted} bindings wanted, grown by {} KiB",
        grown >> 10
    );
    assert!(
        wanted <= (SESSIONS * 9 * SUBSCRIPTIONS_MAX) as u64,
        "{wanted}"
    );
    assert!(grown <= 32 << 20, "{grown} bytes more are resident");
}

/// Whatever it still had to be answered: what it asked for is not done when nobody is there any more.
#[test]
fn a_session_that_waits_ends_with_its_connection() {
    let _alone = alone();
    let (_nobody, address) = dead_address();
    let url = format!("amqp://guest:guest@{address}/%2f");
    let args = ["--auth", "insecure", "--request-timeout-ms", "40000"];
    let server = Server::unready(&url, &args);
    let mut raw = Raw::upgraded(server.address());
    for number in 0..90 {
        let mut command = subscribe_as(&number.to_string(), &format!("fax.status.{number}"));
        command["data"]["padding"] = json!("x".repeat(4000));
        if number % 2 == 1 {
            command["action"] = json!("unsubscribe");
        }
        raw.try_send(&client_text(&command.to_string()));
    }
    server.wait_for_metric("sessions", 1);
    server.until("a subscribe waits", |server| {
        server.metric("subscribes_waited_total") > 0
    });
    raw.reset();
    wait_within(AT_ONCE, "the session has ended", || {
        (server.metric("sessions") == 0).then_some(())
    });
    assert_eq!(server.metric("amqp_bindings_wanted"), 0);
}
