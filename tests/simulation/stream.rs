//! What a client reads, judged frame by frame: the upgrade, then replies in the order of their commands, events of each
//! subscription in order and of no other account, notices, pongs, pings, and one close frame at the end.
//!
//! Replies keep the order of the commands but for pings, which overtake (PROTOCOL 3). An error is right only where the
//! world knows its cause: a subscribe for an account that the client may not see; a wait that lasted
//! `request_timeout_ms`; as many commands at once as the bucket does not hold.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Duration;

use blackhole::routing::amqp_binding::AmqpBinding;
use blackhole::session::close::CloseReason;
use blackhole::session::liveness::PING_PAYLOAD;
use serde_json::Value;

use crate::client::{Client, Deed, Question};
use crate::model::{
    ACCOUNTS, Asked, BINDINGS, Key, PRESENCE, RATE_BURST, RATE_PER_SECOND, escaped, means, needs,
};
use crate::rights::Rights;
use crate::world::World;
use support::wire::{client_frame, server_frames};

/// Replies whose moments are kept: more than are given without a refusal.
const ANSWERS_KEPT: usize = 2 * RATE_BURST;

/// What the judge knows of the world while it reads.
pub(crate) struct Circumstances<'a> {
    pub(crate) clock: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) has_rate_limit: bool,
    pub(crate) is_draining: bool,
    /// Bindings that the source has ever said to be lost.
    pub(crate) ever_lost: &'a HashSet<AmqpBinding>,
    /// What the token file has said, each with the last event that was taken before.
    pub(crate) rights: &'a [(u64, Rights)],
}

/// What all clients have read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) upgrades: u64,
    pub(crate) replies: u64,
    pub(crate) errors: u64,
    pub(crate) rate_limited: u64,
    pub(crate) unavailable: u64,
    pub(crate) events: u64,
    pub(crate) gaps: u64,
    pub(crate) dropped: u64,
    pub(crate) pings: u64,
}

impl Client {
    /// Judges what has arrived.
    pub(crate) fn read_stream(&mut self, around: &Circumstances<'_>, tally: &mut Tally) {
        let mut stream = std::mem::take(&mut self.wire.borrow_mut().to_client);
        if !self.upgraded && self.read_head(&mut stream, around, tally).is_break() {
            self.wire.borrow_mut().to_client = stream;
            return;
        }
        let (frames, used) = server_frames(&stream);
        stream.drain(..used);
        self.wire.borrow_mut().to_client = stream;
        for (opcode, payload) in frames {
            assert_eq!(self.closed_with, None, "a frame after the close frame");
            match opcode {
                0x1 => {
                    let text = String::from_utf8(payload).expect("text is UTF-8");
                    let frame: Value = serde_json::from_str(&text).expect("a frame is JSON");
                    match frame["action"].as_str() {
                        Some("event") => {
                            tally.events += 1;
                            self.on_event(&frame, around);
                        }
                        Some("reply") => {
                            tally.replies += 1;
                            self.on_reply(&frame, around, tally);
                        }
                        Some("notice") => self.on_notice(&frame, tally),
                        _ => panic!("{text}"),
                    }
                }
                0x8 => {
                    let code = payload
                        .get(..2)
                        .map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                    self.judge_close(code, payload.get(2..).unwrap_or_default());
                }
                0x9 => {
                    assert_eq!(payload, PING_PAYLOAD);
                    tally.pings += 1;
                    self.was_pinged += 1;
                    let mut wire = self.wire.borrow_mut();
                    if self.answers_pings && !wire.client_closed {
                        wire.answer(&client_frame(0x8A, &payload));
                    }
                }
                0xA => self.on_pong(payload),
                _ => panic!("opcode {opcode}"),
            }
        }
    }

    /// Takes the head of the upgrade's response off; breaks if no frames come behind it.
    fn read_head(
        &mut self,
        stream: &mut Vec<u8>,
        around: &Circumstances<'_>,
        tally: &mut Tally,
    ) -> ControlFlow<()> {
        let Some(end) = stream.windows(4).position(|window| window == b"\r\n\r\n") else {
            return ControlFlow::Break(());
        };
        let head = String::from_utf8(stream[..end].to_vec()).expect("a response head is text");
        if !head.starts_with("HTTP/1.1 101") {
            let is_full = self.seen.causes.as_ref().is_some_and(|causes| {
                causes.contains(&CloseReason::Evicted) || causes.contains(&CloseReason::Http)
            });
            let is_known = ["HTTP/1.1 503", "HTTP/1.1 429"]
                .iter()
                .any(|one| head.starts_with(one))
                && (around.is_draining || is_full);
            assert!(is_known, "{head}");
            stream.clear();
            return ControlFlow::Break(());
        }
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        self.upgraded = true;
        tally.upgrades += 1;
        stream.drain(..end + 4);
        ControlFlow::Continue(())
    }

    /// Pongs come in order. Of more pings than are answered one by one, some may be passed over for the newest (RFC
    /// 6455 section 5.5.3).
    fn on_pong(&mut self, payload: Vec<u8>) {
        let place = self.pings.iter().position(|ping| *ping == payload);
        let Some(place) = place else {
            assert_eq!(self.deed, Deed::Noise, "{:?}: a pong to no ping", self.id);
            return;
        };
        assert!(place == 0 || self.is_ping_flood, "pongs come in order");
        self.pings.drain(..=place);
        self.is_ping_flood &= !self.pings.is_empty();
        self.last_pong = Some(payload);
    }

    fn on_event(&mut self, frame: &Value, around: &Circumstances<'_>) {
        let binding = frame["subscribed_key"].as_str().expect("a string");
        let mut bindings = BINDINGS.into_iter().chain(PRESENCE);
        let binding = bindings
            .find(|one| *one == binding)
            .expect("a binding of ours");
        let args = &frame["args"];
        let number = args["Number"].as_u64().expect("a number");
        let rights = World::rights_at(around.rights, number);
        let name = frame["name"].as_str().unwrap_or_default();
        let call = args["Call-ID"].as_str().unwrap_or_default();
        let words: Vec<&str> = binding.split('.').collect();
        let (account, routing_key, expected) = match args["Realm"].as_u64() {
            None => {
                let account = args["Account"].as_u64().expect("a number") as usize;
                let expected = format!("call.{}.{}.{}", ACCOUNTS[account], words[1], words[2]);
                (account, format!("call.{name}.{call}"), expected)
            }
            Some(realm) => {
                let owner = rights.owner(realm as usize);
                let owner = owner.unwrap_or_else(|| panic!("nobody's realm: {frame}"));
                let realm = escaped(realm as usize);
                let expected = format!("{}.{realm}.{}", words[1], words[2]);
                (owner, format!("{name}.{realm}.{call}"), expected)
            }
        };
        let key = (account, binding);
        assert!(
            self.may_see(account, rights),
            "{:?} got an event of an account that it may not see: {frame}",
            self.id
        );
        assert!(
            self.ever.contains(&key),
            "{:?} never asked for {key:?}",
            self.id
        );
        assert!(
            means(binding, &routing_key),
            "{binding} does not match {routing_key}"
        );
        assert_eq!(frame["subscription_key"], Value::from(expected));
        self.judge_request_id(key, frame);
        let last = self.last.insert(key, number).unwrap_or(0);
        assert!(
            number > last,
            "event {number} after {last} of {key:?}: twice, or out of order"
        );
        assert!(
            number >= self.last_of_all,
            "event {number} of {key:?} after {} of another subscription",
            self.last_of_all
        );
        self.last_of_all = number;
        for (waiting, missed) in [
            (&mut self.due, &mut self.missed),
            (&mut self.maybe, &mut self.maybe_missed),
        ] {
            let Some(waiting) = waiting.get_mut(&key) else {
                continue;
            };
            while waiting.front().is_some_and(|first| *first < number) {
                waiting.pop_front();
                *missed += 1;
            }
            if waiting.front() == Some(&number) {
                waiting.pop_front();
            }
        }
    }

    /// An event carries the request id of the subscribe that it comes by. A subscription keeps its own until it is given
    /// up, and an older one does not come back.
    fn judge_request_id(&mut self, key: Key, frame: &Value) {
        let id = frame.get("request_id").map(|id| {
            let id = id.as_str();
            id.expect("a string").to_owned()
        });
        let ids = self.request_ids.get_mut(&key).expect("it subscribed");
        let place = ids.iter().position(|one| *one == id);
        let place = place.unwrap_or_else(|| {
            panic!(
                "{:?}: {frame} of {key:?}, which has one of {ids:?}",
                self.id
            )
        });
        ids.drain(..place);
    }

    fn on_reply(&mut self, frame: &Value, around: &Circumstances<'_>, tally: &mut Tally) {
        let is_success = frame["status"] == "success";
        let error = frame["data"]["errors"][0].as_str().unwrap_or_default();
        tally.errors += u64::from(!is_success);
        let id = frame["request_id"].as_str().expect("a string");
        // The server makes one up where the command had none.
        let is_made_up = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_of =
            |one: &Question| one.request_id == id || (is_made_up && one.request_id.is_empty());
        let place = self.asked.iter().position(is_of);
        let is_anonymous = |asked: &Asked| matches!(asked, Asked::Anonymous);
        let Some(place) =
            place.or_else(|| self.asked.iter().position(|one| is_anonymous(&one.asked)))
        else {
            assert!(
                self.deed == Deed::Noise && !is_success,
                "{:?}: a reply to nothing: {frame}",
                self.id
            );
            return;
        };
        let question = self.asked.remove(place).expect("it was found");
        // One that the rate limit refuses is not looked at, be it a ping, and keeps its place.
        let overtakes = is_success && matches!(question.asked, Asked::Ping);
        let is_in_order = match overtakes {
            true => question.number > self.last_pong_number,
            false => place == 0,
        };
        assert!(
            is_in_order,
            "{:?}: replies keep the order of the commands, but for pings: {frame} to {place} of {:?}",
            self.id, self.asked
        );
        if overtakes {
            self.last_pong_number = question.number;
        }
        self.answered_at.push_back(around.clock);
        if self.answered_at.len() > ANSWERS_KEPT {
            self.answered_at.pop_front();
        }
        let sent_at = question.sent_at.expect("an answer comes in a turn");
        if error.starts_with("rate limiting") {
            self.refused_in_a_row += 1;
            tally.rate_limited += 1;
            let is_due = around.has_rate_limit && self.may_be_over_the_rate(sent_at);
            assert!(is_due, "{:?}: {frame}", self.id);
            return;
        }
        self.refused_in_a_row = 0;
        let is_bad_token = error == "failed to authenticate token";
        if !is_bad_token && !is_anonymous(&question.asked) {
            self.is_known = true;
            self.run_as(question.number, question.token);
        }
        if error == "event source unavailable" {
            tally.unavailable += 1;
            let Asked::Subscribe((_, binding)) = question.asked else {
                panic!("{:?} asked {:?}: {frame}", self.id, question.asked);
            };
            let is_late = around.clock - sent_at >= around.request_timeout;
            let mut lost = around.ever_lost.iter();
            let is_due = is_late || lost.any(|lost| needs(binding, &lost.key));
            assert!(is_due, "{:?}: {frame}", self.id);
            return;
        }
        if !question.is_certain {
            let is_of_rights = is_bad_token
                || error == "unauthorized account id"
                || error == "no available subscriptions to requested binding";
            assert!(is_success || is_of_rights, "{frame}");
            return;
        }
        match question.asked {
            Asked::Subscribe((usize::MAX, _)) | Asked::Unsubscribe => {
                assert!(is_success, "{frame}")
            }
            Asked::Subscribe(key) => {
                assert!(is_success, "{frame}");
                let listed = frame["data"]["subscribed"].as_array().expect("a list");
                assert!(listed.contains(&Value::from(key.1)));
                self.live.insert(key);
            }
            Asked::Ping => {
                // The first command of a session may be a ping: it carries the token.
                assert_eq!(frame["data"]["response"], "pong", "{frame}");
            }
            Asked::Refused => {
                assert_eq!(error, "unauthorized account id", "{frame} {self:?}");
            }
            Asked::NoRealm => {
                let expected = "no available subscriptions to requested binding";
                assert_eq!(error, expected, "{frame}");
            }
            Asked::BadToken => assert!(is_bad_token, "{frame}"),
            Asked::Many => {}
            Asked::Anonymous => {
                assert!(!is_success, "{frame}");
            }
        }
    }

    /// The session has run a command with this token: what another identity had and this may not is told by now.
    fn run_as(&mut self, number: u64, token: &'static str) {
        if self.identity.is_some_and(|(latest, _)| latest > number) {
            return;
        }
        let before = self.identity.replace((number, token));
        if before.is_some_and(|(_, before)| before != token) {
            let owed = self.ending.iter().find(|(reason, _)| *reason == "identity");
            assert_eq!(owed, None, "{:?} was not told", self.id);
        }
    }

    /// Whether a command, no longer or still without its reply, that was sent at this moment may have met an empty bucket: between it and some earlier moment
    /// more may have been read than fits.
    pub(crate) fn may_be_over_the_rate(&self, sent_at: Duration) -> bool {
        let open = self.asked.len() + 1;
        let answers = self.answered_at.iter().rev();
        answers.enumerate().any(|(behind, since)| {
            let seconds = sent_at.saturating_sub(*since).as_secs_f64();
            let fits = RATE_BURST as f64 + RATE_PER_SECOND as f64 * seconds;
            (open + behind) as f64 >= fits.floor()
        }) || open + self.answered_at.len() >= RATE_BURST
    }

    fn on_notice(&mut self, frame: &Value, tally: &mut Tally) {
        if frame["name"] == "subscriptions_ended" {
            return self.on_ended(&frame["data"]);
        }
        assert_eq!(frame["name"], "gap");
        tally.gaps += 1;
        match frame["data"]["reason"].as_str() {
            Some("slow_consumer") => {
                let dropped = frame["data"]["dropped"].as_u64().expect("a number");
                assert!(dropped > 0);
                self.announced += dropped;
                tally.dropped += dropped;
            }
            Some("event_source") => self.outage_notices += 1,
            _ => panic!("{frame}"),
        }
    }
}
