//! Made-up calls: each account has one call after another, and each call is created, answered and destroyed.
//!
//! Event number `i` belongs to account `i % accounts`, and is stage `(i / accounts) % 3` of that account's call number
//! `i / accounts / 3`. So nothing is remembered between events, whatever the number of accounts is. Event `i` is due `i
//! / rate` seconds after the start, and events that fell due meanwhile are handed over at once. A source that the loop
//! held back for more than [`CATCH_UP_MAX`] does not catch up: its clock starts again.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::answers::{Ended, answer_until, answer_waiting};
use super::options::SourceError;
use crate::account::AccountId;
use crate::event::age::GREGORIAN_UNIX_SECONDS;
use crate::event::{Arrival, Event};
use crate::handoff::{FromSource, SourceEnd};

/// The furthest that the source may be behind its pace and still catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Length of every made-up call, from answer to hang-up, as its last event tells it.
const BILLING_SECONDS: u32 = 31;

/// The id of made-up account `n`: the number itself as 32 hex digits. The accounts of a demo are 1 to `accounts`.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "it does not")]
pub fn demo_account(n: u32) -> AccountId {
    AccountId::parse(&format!("{n:032x}")).expect("32 hex digits are an account id")
}

/// The stages of a call, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Create,
    Answer,
    Destroy,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Create, Self::Answer, Self::Destroy];

    fn event_name(self) -> &'static str {
        match self {
            Self::Create => "CHANNEL_CREATE",
            Self::Answer => "CHANNEL_ANSWER",
            Self::Destroy => "CHANNEL_DESTROY",
        }
    }

    fn disposition(self) -> &'static str {
        match self {
            Self::Create => "DELAYED NEGOTIATION",
            Self::Answer => "EARLY MEDIA",
            Self::Destroy => "ANSWER",
        }
    }
}

/// One event, before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered {
    /// 1 to `accounts`.
    account: u32,
    /// Which of the account's calls, from 0.
    call: u64,
    stage: Stage,
}

impl Numbered {
    fn new(index: u64, accounts: u32) -> Self {
        let of_account = index / u64::from(accounts);
        let account = (index % u64::from(accounts)) as u32 + 1;
        Self {
            account,
            call: of_account / 3,
            stage: Stage::ALL[(of_account % 3) as usize],
        }
    }
}

/// The source `demo`.
pub(super) struct Demo {
    rate: f64,
    accounts: u32,
    /// Microseconds since 1970 at the start: makes the call ids of two runs differ.
    run: u64,
}

impl Demo {
    pub(super) fn new(rate: f64, accounts: u32) -> Result<Self, SourceError> {
        if !(rate.is_finite() && rate > 0.0) {
            return Err(SourceError::Rate(rate));
        }
        if accounts == 0 {
            return Err(SourceError::NoAccounts);
        }
        Ok(Self {
            rate,
            accounts,
            run: unix_microseconds(),
        })
    }

    pub(super) fn run(self, source: &SourceEnd) -> Ended {
        match self.play(source) {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    fn play(&self, source: &SourceEnd) -> Result<Infallible, Ended> {
        let exchange: Arc<str> = Arc::from("callevt");
        let mut pace = Pace::new(Instant::now(), self.rate);
        loop {
            for index in pace.due(Instant::now()) {
                answer_waiting(source)?;
                let mut event = self.event(&exchange, index, unix_microseconds());
                event.arrival = Some(Arrival {
                    at: Instant::now(),
                    age: None,
                });
                source.send(FromSource::Event(Arc::new(event)))?;
            }
            answer_until(source, pace.next_due(Instant::now()))?;
        }
    }

    /// Event number `index`, as published `now` microseconds after 1970.
    fn event(&self, exchange: &Arc<str>, index: u64, now: u64) -> Event {
        let numbered = Numbered::new(index, self.accounts);
        let call_id = self.call_id(numbered);
        let routing_key = format!("call.{}.{call_id}", numbered.stage.event_name());
        let body = body(numbered, &call_id, now);
        Event::decode(
            exchange.clone(),
            routing_key.into(),
            body.into_bytes(),
            None,
        )
        .expect("a made-up body is a JSON object")
    }

    /// Unique over accounts, calls and runs. Letters, digits and `-` only, so that escaping it for the routing key
    /// (PROTOCOL 6) changes nothing.
    fn call_id(&self, numbered: Numbered) -> String {
        format!(
            "demo-{:x}-{:x}-{:x}",
            self.run, numbered.account, numbered.call
        )
    }
}

/// Which events are due when. Pure: the clock comes in as `now`.
struct Pace {
    /// When event number `first` was due.
    start: Instant,
    first: u64,
    /// The next event to hand over; never below `first`.
    next: u64,
    rate: f64,
}

impl Pace {
    fn new(start: Instant, rate: f64) -> Self {
        Self {
            start,
            first: 0,
            next: 0,
            rate,
        }
    }

    /// Returns the events due at `now` that no earlier call returned. If the source is further behind than
    /// [`CATCH_UP_MAX`], that is one event, from which the pace starts again.
    fn due(&mut self, now: Instant) -> Range<u64> {
        let elapsed = now.saturating_duration_since(self.start).as_secs_f64();
        let mut end = self.next.max(self.first + (elapsed * self.rate) as u64 + 1);
        if (end - self.next) as f64 > (self.rate * CATCH_UP_MAX.as_secs_f64()).max(1.0) {
            (self.start, self.first) = (now, self.next);
            end = self.next + 1;
        }
        std::mem::replace(&mut self.next, end)..end
    }

    /// When the next event is due; at most an hour after `now`, so that it exists for every rate.
    fn next_due(&self, now: Instant) -> Instant {
        let latest = now + Duration::from_secs(3600);
        Duration::try_from_secs_f64((self.next - self.first) as f64 / self.rate)
            .ok()
            .and_then(|offset| self.start.checked_add(offset))
            .map_or(latest, |due| due.min(latest))
    }
}

fn unix_microseconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}

/// The body of one event: about 1 KB, with the keys that the platform's own events of that name have. `Msg-ID` is
/// the time of publishing in microseconds since 1970, as the platform's is.
fn body(numbered: Numbered, call_id: &str, now: u64) -> String {
    let Numbered {
        account,
        call,
        stage,
    } = numbered;
    let realm = format!("account-{account}.demo.example");
    let user = format!("user-{}", call % 90 + 10);
    let caller = 200 + call % 700;
    let callee = 1000 + call % 9000;
    let timestamp = now / 1_000_000 + GREGORIAN_UNIX_SECONDS;
    let mut body = format!(
        concat!(
            r#"{{"App-Name":"ecallmgr","App-Version":"4.3.0","Call-Direction":"inbound","Call-ID":"{call_id}","#,
            r#""Caller-ID-Name":"Demo {caller}","Caller-ID-Number":"{caller}","Custom-Channel-Vars":{{"#,
            r#""Account-ID":"{account_id}","Account-Name":"Demo account {account}","Account-Realm":"{realm}","#,
            r#""Authorizing-ID":"{device:032x}","Authorizing-Type":"device","Owner-ID":"{owner:032x}","#,
            r#""Realm":"{realm}","Username":"{user}"}},"Custom-SIP-Headers":{{"X-AUTH-IP":"192.0.2.{host}"}},"#,
            r#""Disposition":"{disposition}","Event-Category":"call_event","Event-Name":"{event_name}","#,
            r#""From":"{caller}@{realm}","From-Uri":"{user}@{realm}","Media-Server":"media.demo.example","#,
            r#""Msg-ID":"{now}","Node":"ecallmgr@apps.demo.example","Presence-ID":"{caller}@{realm}","#,
            r#""Request":"{callee}@{realm}","Switch-URI":"sip:198.51.100.7:11000","#,
            r#""Switch-URL":"sip:mod_sofia@198.51.100.7:11000","Timestamp":{timestamp},"#,
            r#""To":"{callee}@{realm}","To-Uri":"{callee}@{realm}""#,
        ),
        call_id = call_id,
        caller = caller,
        callee = callee,
        account_id = demo_account(account),
        account = account,
        realm = realm,
        device = 0xd000_0000_u64 + call % 90,
        owner = 0xa000_0000_u64 + call % 90,
        user = user,
        host = call % 250 + 1,
        disposition = stage.disposition(),
        event_name = stage.event_name(),
        now = now,
        timestamp = timestamp,
    );
    if stage == Stage::Destroy {
        write!(
            body,
            r#","Billing-Seconds":"{BILLING_SECONDS}","Duration-Seconds":"{}","Hangup-Cause":"NORMAL_CLEARING","Ringing-Seconds":"1""#,
            BILLING_SECONDS + 1,
        )
        .expect("a string takes everything");
    }
    body.push('}');
    body
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::super::SourceConfig;
    use super::super::testing::Loop;
    use super::*;

    #[test]
    fn accounts_take_turns_and_each_call_is_created_answered_and_destroyed() {
        let demo = Demo::new(1.0, 3).expect("valid");
        let exchange: Arc<str> = Arc::from("callevt");
        let mut call_ids = HashSet::new();
        for call in 0..4 {
            for stage in Stage::ALL {
                for account in 1..=3 {
                    let index = (call * 3 + stage as u64) * 3 + u64::from(account) - 1;
                    let event = demo.event(&exchange, index, 1_443_672_757_935_421);
                    let body: Value = serde_json::from_str(&event.body).expect("JSON");
                    assert_eq!(body["Event-Name"], stage.event_name(), "event {index}");
                    assert_eq!(
                        body["Custom-Channel-Vars"]["Account-ID"],
                        format!("{account:032x}"),
                        "event {index}"
                    );
                    assert_eq!(
                        event.head.account,
                        Some(demo_account(account)),
                        "event {index}"
                    );
                    assert_eq!(body["Msg-ID"], "1443672757935421");
                    assert_eq!(body["Timestamp"], 63_610_891_957_u64);
                    let call_id = body["Call-ID"].as_str().expect("a string");
                    assert!(
                        call_id
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'-'),
                        "{call_id} needs escaping"
                    );
                    assert_eq!(
                        *event.routing_key,
                        *format!("call.{}.{call_id}", stage.event_name())
                    );
                    assert_eq!(&*event.exchange, "callevt");
                    assert!(
                        (800..1400).contains(&event.body.len()),
                        "{} bytes",
                        event.body.len()
                    );
                    assert_eq!(
                        call_ids.insert(call_id.to_owned()),
                        stage == Stage::Create,
                        "one id a call"
                    );
                }
            }
        }
    }

    #[test]
    fn events_are_due_at_an_even_pace_and_a_small_delay_is_caught_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 100.0);
        assert_eq!(pace.due(start), 0..1);
        assert_eq!(pace.next_due(start), start + Duration::from_millis(10));
        assert_eq!(pace.due(start + Duration::from_millis(9)), 1..1);
        assert_eq!(pace.due(start + Duration::from_millis(505)), 1..51);
        assert_eq!(pace.next_due(start), start + Duration::from_millis(510));
        assert_eq!(
            pace.due(start),
            51..51,
            "a clock that stands still makes nothing due"
        );
    }

    #[test]
    fn a_long_hold_up_is_not_caught_up_and_no_event_is_left_out() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 100.0);
        assert_eq!(pace.due(start), 0..1);
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.due(later), 1..2);
        assert_eq!(pace.next_due(later), later + Duration::from_millis(10));
        assert_eq!(pace.due(later + Duration::from_millis(20)), 2..4);
    }

    #[test]
    fn a_rate_below_one_event_a_second_waits_its_turn_and_every_rate_has_a_deadline() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 0.1);
        assert_eq!(pace.due(start), 0..1);
        assert_eq!(pace.due(start + Duration::from_secs(9)), 1..1);
        assert_eq!(pace.due(start + Duration::from_millis(10_001)), 1..2);
        let mut glacial = Pace::new(start, f64::MIN_POSITIVE);
        assert_eq!(glacial.due(start), 0..1);
        assert_eq!(glacial.next_due(start), start + Duration::from_secs(3600));
    }

    #[test]
    fn a_hundred_thousand_events_a_second_are_handed_over_in_order_under_back_pressure() {
        let mut the_loop = Loop::start(
            &SourceConfig::Demo {
                rate: 100_000.0,
                accounts: 7,
            },
            8,
        );
        assert!(matches!(the_loop.next(), FromSource::Up(_)));
        for index in 0..5_000 {
            let expected = Numbered::new(index, 7);
            let event = the_loop.next_event();
            assert_eq!(
                event.head.account,
                Some(demo_account(expected.account)),
                "event {index}"
            );
            assert_eq!(
                event.head.name.as_deref(),
                Some(expected.stage.event_name()),
                "event {index}"
            );
        }
        the_loop.stop();
    }
}
