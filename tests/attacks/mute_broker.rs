//! Brokers that beat their heart and answer nothing: whatever such a one was asked, it is left for the next one.

use std::thread;
use std::time::{Duration, Instant};

use support::broker::Broker;
use support::client::{ANY_TOKEN, errors};
use support::events::call_event;
use support::publisher::Publisher;
use support::server::{Server, wait_within};
use support::tcp_proxy::{Frames, Mode, TcpProxy};

/// How long a broker that answers nothing is believed in, at most.
const LEFT_WITHIN: Duration = Duration::from_secs(30);

/// How long the queue is waited for at most while its broker has not noticed the end of the connection before, which is
/// when that connection has missed two heartbeats; and then some, on a busy machine.
const FOUND_WITHIN: Duration = Duration::from_secs(50);

/// So slow that a heartbeat passes in its time, and no answer does.
const SPELLING: Mode = Mode::Trickle {
    bytes: 1,
    tick: Duration::from_millis(500),
};

/// A bridge from the first of these brokers, or the second, and an account that no other has.
struct Bridge<'b> {
    name: &'static str,
    broker: &'b Broker,
    server: Server,
    account: String,
}

impl<'b> Bridge<'b> {
    fn new(name: &'static str, number: u32, broker: &'b Broker, urls: [&str; 2]) -> Self {
        let [first, second] = urls;
        // A subscribe waits less long than a broker is believed in.
        let args = [
            "--amqp",
            second,
            "--auth",
            "insecure",
            "--request-timeout-ms",
            "2000",
        ];
        Self {
            name,
            broker,
            server: Server::unready(first, &args),
            account: format!("{number:032x}"),
        }
    }

    /// Waits until a balancer is told this.
    fn until(&self, what: &str, status: u16) {
        self.within(LEFT_WITHIN, what, status);
    }

    /// The same, for so long.
    fn within(&self, time: Duration, what: &str, status: u16) {
        let (begun, what) = (Instant::now(), format!("{}: {what}", self.name));
        wait_within(time, &what, || {
            (self.server.page("/readyz").0 == status).then_some(())
        });
        println!("{what}: within {:?}", begun.elapsed());
        assert_eq!(self.server.probe(), status);
    }

    /// An honest session of this account gets what it subscribes to.
    fn assert_served(&self) {
        let mut session = self.server.client();
        session.must_subscribe(ANY_TOKEN, &self.account, "call.CHANNEL_CREATE.served");
        let publisher = Publisher::connect(&self.broker.url());
        let event = call_event(&self.account, "CHANNEL_CREATE", 1).to_string();
        publisher.publish("callevt", "call.CHANNEL_CREATE.served", event.as_bytes());
        assert_eq!(session.event()["args"]["Number"], 1);
    }
}

/// It lets nobody open a channel.
fn mute_after_the_login(broker: &Broker) {
    let mute = TcpProxy::to_port(broker.port());
    mute.set(Mode::Only(Frames::Login));
    let urls = [&*mute.amqp_url(), &broker.url()];
    let bridge = Bridge::new("mute after the login", 1, broker, urls);
    bridge.until("the next one is used", 200);
    bridge.assert_served();
}

/// It answers, but a byte at a time, and no login comes to an end.
fn spelling_its_login(broker: &Broker) {
    let spelling = TcpProxy::to_port(broker.port());
    spelling.set(SPELLING);
    let urls = [&*spelling.amqp_url(), &broker.url()];
    let bridge = Bridge::new("spelling its login", 2, broker, urls);
    bridge.until("the next one is used", 200);
    bridge.assert_served();
}

/// From some moment in service on it is mute, and so is the next one; which then speaks again.
fn mute_in_service(broker: &Broker) {
    let [first, second] = [0, 1].map(|_| TcpProxy::to_port(broker.port()));
    let urls = [&*first.amqp_url(), &second.amqp_url()];
    let bridge = Bridge::new("mute in service", 3, broker, urls);
    bridge.until("in service", 200);
    bridge.assert_served();
    first.set(Mode::Only(Frames::Heartbeats));
    second.set(Mode::Only(Frames::Login));
    let reply = bridge
        .server
        .client()
        .subscribe(ANY_TOKEN, &bridge.account, "call.*.unanswered");
    assert_eq!(errors(&reply), ["event source unavailable"]);
    bridge.until("balancers are told", 503);
    second.set(Mode::Pass);
    bridge.until("the next one is used", 200);
    assert_eq!(bridge.server.metric("source_outages_total"), 1);
    bridge.assert_served();
}

/// From some moment in service on it says a byte at a time.
fn spelling_in_service(broker: &Broker) {
    let spelling = TcpProxy::to_port(broker.port());
    let second = TcpProxy::to_port(broker.port());
    second.set(Mode::Only(Frames::Login));
    let urls = [&*spelling.amqp_url(), &second.amqp_url()];
    let bridge = Bridge::new("spelling in service", 4, broker, urls);
    bridge.until("in service", 200);
    bridge.assert_served();
    spelling.set(SPELLING);
    bridge.until("balancers are told", 503);
    second.set(Mode::Pass);
    // The way is so slow that the broker does not hear of the end.
    bridge.within(FOUND_WITHIN, "the next one is used", 200);
    bridge.assert_served();
}

/// All at the same time, since each only waits; and beside other attacks, for the same reason.
#[test]
fn a_broker_that_answers_nothing_is_left_for_the_next_one() {
    // Not the one whose bindings others count.
    let Some(broker) = Broker::own() else {
        return;
    };
    let brokers = [
        mute_after_the_login,
        spelling_its_login,
        mute_in_service,
        spelling_in_service,
    ];
    thread::scope(|scope| {
        for mute in brokers {
            let broker = &broker;
            scope.spawn(move || mute(broker));
        }
    });
}
