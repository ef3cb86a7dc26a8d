//! A client: its connection, the cursors that it knows, the books of what it is owed, and the judgement of what it reads.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use blackhole::session::id::ConnId;
use serde_json::{Value, json};

use super::broker::Log;
use super::model::is_for;
use super::process::Process;
use super::world::{HAS_HISTORY, Tally};
use crate::model::{ACCOUNTS, Key, TOKENS};
use crate::rights::Rights;
use support::scripted::Wire;
use support::wire::{client_frame, client_text, server_frames};

/// Lines of what a client went through that are kept.
const STORY_MAX: usize = 60;

/// How long an event may be on its way from its publisher to the loop, and a loss be known.
const LAG_MAX: Duration = Duration::from_millis(1_500);

/// A cursor, and what it is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) text: String,
    /// Number of the last event published when it was sent: what is published later comes after it.
    pub(super) sent_at: u64,
    pub(super) incarnation: usize,
}

impl Cursor {
    /// The same with its TIME so much later.
    fn moved(&self, by_ms: i64) -> String {
        let mut parts: Vec<String> = self.text.split('.').map(str::to_owned).collect();
        let time = u64::from_str_radix(&parts[1], 36).expect("base 36");
        parts[1] = base_36(time.saturating_add_signed(by_ms));
        parts.join(".")
    }

    fn mark(&self) -> &str {
        self.text.rsplit('.').next().expect("three parts")
    }

    /// Its TIME.
    fn time(&self) -> u64 {
        let time = self.text.split('.').nth(1).expect("three parts");
        u64::from_str_radix(time, 36).expect("base 36")
    }
}

fn base_36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while number > 0 || digits.is_empty() {
        digits.push(char::from_digit((number % 36) as u32, 36).expect("a digit"));
        number /= 36;
    }
    digits.into_iter().rev().collect()
}

/// What a subscribe says of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Nothing.
    Absent,
    /// `true`.
    FromNow,
    /// The last cursor of each of its keys.
    Own(Cursor),
    /// Any other cursor that some process gave to somebody.
    Any(Cursor),
    /// The last cursor, with a TIME of tomorrow.
    Future(Cursor),
    /// The last cursor, with a TIME of yesterday.
    Yesterday(Cursor),
    /// No cursor.
    Garbage(Value),
}

#[derive(Clone, Debug)]
enum Asked {
    Subscribe(Vec<Key>, Resume),
    Unsubscribe(Key),
    Ping,
}

/// The books of a subscription.
#[derive(Debug, Default)]
pub(super) struct Sub {
    /// Events after this number are owed; `None`: it has no claim.
    pub(super) owed_after: Option<u64>,
    /// Numbers of what came, and the incarnation that sent it last.
    pub(super) got: HashMap<u64, usize>,
    /// Those behind the first number and up to the second may be missing: it was told so.
    pub(super) excused: Vec<(u64, u64)>,
    /// These may be missing.
    pub(super) spared: HashSet<u64>,
    pub(super) cursor: Option<Cursor>,
    /// Something came before the reply to its subscribe, so its cursor says less than it has.
    is_ahead: bool,
    /// It went back to a cursor before what it has, and is not live again.
    is_behind: bool,
    /// Refused, because of rights or modules: not asked for again before something changes.
    pub(super) is_refused: bool,
}

impl Sub {
    fn excuse(&mut self, after: u64, to: u64) {
        self.excused.push((after, to));
    }

    /// It has no claim any more.
    pub(super) fn end(&mut self) {
        self.owed_after = None;
    }

    /// Whether this event must have come.
    pub(super) fn is_owed(&self, number: u64) -> bool {
        self.owed_after.is_some_and(|after| number > after)
            && !self.got.contains_key(&number)
            && !self.spared.contains(&number)
            && !self
                .excused
                .iter()
                .any(|(after, to)| number > *after && number <= *to)
    }
}

/// What was judged of a replay so far.
#[derive(Debug)]
struct Replay {
    frames: u64,
}

pub(super) struct Connection {
    pub(super) incarnation: usize,
    pub(super) id: ConnId,
    pub(super) wire: Rc<RefCell<Wire>>,
    is_upgraded: bool,
    /// Nothing that it asked was answered.
    is_new: bool,
    /// Bytes that were judged.
    judged: u64,
    /// After each turn: bytes written by then, and the number of the last event published.
    marks: VecDeque<(u64, u64)>,
    asked: VecDeque<(String, Asked)>,
    /// What it is subscribed to, as far as it knows.
    pub(super) live: BTreeSet<Key>,
    /// The last event of each publisher for each subscription.
    last: BTreeMap<(Key, usize), u64>,
    replay: Option<Replay>,
    /// Replies that said `resumed: false`, and whose gap notice has not come.
    gaps_due: usize,
    /// Every subscribe so far was resumed with the last cursor of its keys, which was of this process: no event comes twice.
    is_exact: bool,
    /// Number of the last event published when the latest subscribe succeeded.
    subscribed_at: u64,
    /// The number of the last event.
    last_event: Option<u64>,
    /// The cursors that it resumed with.
    came_with: Vec<Cursor>,
    /// Of the latest frame that had one, since the latest reply.
    last_cursor: Option<Cursor>,
    pub(super) is_over: bool,
    /// The server says that it goes.
    pub(super) is_told_to_go: bool,
}

impl Connection {
    pub(super) fn new(incarnation: usize, id: ConnId, wire: Rc<RefCell<Wire>>) -> Self {
        Self {
            incarnation,
            id,
            wire,
            is_upgraded: false,
            is_new: true,
            judged: 0,
            marks: VecDeque::new(),
            asked: VecDeque::new(),
            live: BTreeSet::new(),
            last: BTreeMap::new(),
            replay: None,
            gaps_due: 0,
            is_exact: true,
            subscribed_at: 0,
            last_event: None,
            came_with: Vec::new(),
            last_cursor: None,
            is_over: false,
            is_told_to_go: false,
        }
    }

    /// Notes what has been written after a turn.
    pub(super) fn mark(&mut self, latest: u64) {
        let written = self.wire.borrow().written;
        if self.marks.back().is_none_or(|(bytes, _)| *bytes < written) {
            self.marks.push_back((written, latest));
        }
    }

    /// Number of the last event that was published when the byte at this place was written, at the latest.
    fn latest_at(&mut self, place: u64) -> u64 {
        while self.marks.len() > 1 && self.marks[0].0 < place {
            self.marks.pop_front();
        }
        self.marks.front().expect("it was written in a turn").1
    }

    fn is_asked(&self, key: Key) -> bool {
        self.asked.iter().any(|(_, asked)| match asked {
            Asked::Subscribe(keys, _) => keys.contains(&key),
            Asked::Unsubscribe(one) => *one == key,
            Asked::Ping => false,
        })
    }

    /// What it waits for.
    pub(super) fn waits_for(&self) -> String {
        let (asked, replay, wire) = (&self.asked, &self.replay, self.wire.borrow());
        let incarnation = self.incarnation;
        format!(
            "in {incarnation} {:?}: {asked:?} {replay:?} {} {wire:?}",
            self.id, self.gaps_due
        )
    }

    /// Whether it waits for an answer, a notice or the end of a replay.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asked.is_empty() || self.replay.is_some() || self.gaps_due > 0
    }

    /// Whether this cursor is not before the last, if one process made both.
    fn rises(&mut self, cursor: &Cursor) -> bool {
        let last = self.last_cursor.replace(cursor.clone());
        last.is_none_or(|last| last.mark() != cursor.mark() || last.time() <= cursor.time())
    }

    fn forget(&mut self, key: Key) {
        self.live.remove(&key);
        self.last.retain(|(one, _), _| *one != key);
    }

    /// Whether a reply is to come.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Ends it from the client's side.
    pub(super) fn hang_up(&self, resets: bool) {
        let mut wire = self.wire.borrow_mut();
        match resets {
            true => wire.is_reset = true,
            false => wire.client_closed = true,
        }
        wire.edge_readable = true;
    }
}

pub(super) struct Client {
    pub(super) number: usize,
    pub(super) token: usize,
    /// It never resumes.
    pub(super) is_plain: bool,
    pub(super) subs: BTreeMap<Key, Sub>,
    pub(super) connection: Option<Connection>,
    next_request: u64,
    story: VecDeque<String>,
}

/// What a judgement is made by.
pub(super) struct Around<'a> {
    pub(super) log: &'a Log,
    pub(super) clock: Duration,
    pub(super) process: &'a Process,
    /// Every state of the token file, the latest last.
    pub(super) rights: &'a [Rights],
}

impl Client {
    pub(super) fn new(number: usize, token: usize, keys: &[Key], is_plain: bool) -> Self {
        Self {
            number,
            token,
            is_plain,
            subs: keys.iter().map(|key| (*key, Sub::default())).collect(),
            connection: None,
            next_request: 0,
            story: VecDeque::new(),
        }
    }

    pub(super) fn note(&mut self, clock: Duration, line: String) {
        if self.story.len() == STORY_MAX {
            self.story.pop_front();
        }
        self.story.push_back(format!("{clock:.3?} {line}"));
    }

    /// What it went through.
    pub(super) fn story(&self) -> String {
        let lines: Vec<&str> = self.story.iter().map(String::as_str).collect();
        format!("client {}\n  {}", self.number, lines.join("\n  "))
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n{}", self.story());
    }

    fn ask(&mut self, mut command: Value, asked: Asked) {
        self.next_request += 1;
        let id = format!("r{}", self.next_request);
        command["request_id"] = id.clone().into();
        command["auth_token"] = TOKENS[self.token].into();
        let connection = self.connection.as_mut().expect("connected");
        connection.asked.push_back((id, asked));
        let mut wire = connection.wire.borrow_mut();
        wire.send(&client_text(&command.to_string()));
    }

    pub(super) fn ping(&mut self) {
        self.ask(json!({"action": "ping"}), Asked::Ping);
    }

    /// Goes on as the owner of another token.
    pub(super) fn switch(&mut self, token: usize, rights: &Rights, clock: Duration) {
        self.note(clock, format!("is {} now", TOKENS[token]));
        self.token = token;
        for (key, sub) in &mut self.subs {
            sub.is_refused = false;
            if !rights.sees(TOKENS[token], key.0) {
                sub.end();
            }
        }
        if self.connection.is_some() {
            self.ping();
        }
    }

    pub(super) fn unsubscribe(&mut self, key: Key, clock: Duration) {
        self.note(clock, format!("unsubscribes {key:?}"));
        let sub = self.subs.get_mut(&key).expect("one of its own");
        sub.end();
        sub.cursor = None;
        self.ask(
            json!({"action": "unsubscribe", "data": {"account_id": ACCOUNTS[key.0], "binding": key.1}}),
            Asked::Unsubscribe(key),
        );
    }

    /// Subscribes to what it wants and does not have here: to what has one cursor at once, or to each singly. `choose`
    /// makes of the last cursor what is said of the past.
    pub(super) fn subscribe_missing(
        &mut self,
        singly: bool,
        clock: Duration,
        mut choose: impl FnMut(Option<&Cursor>) -> Resume,
    ) {
        let Some(connection) = &self.connection else {
            return;
        };
        let is_missing = |(key, sub): &(&Key, &Sub)| {
            !sub.is_refused && !connection.live.contains(key) && !connection.is_asked(**key)
        };
        let mut missing: Vec<(Key, Option<Cursor>)> = self
            .subs
            .iter()
            .filter(is_missing)
            .map(|(key, sub)| (*key, sub.cursor.clone()))
            .collect();
        missing.sort_by_key(|(key, _)| *key);
        while let Some((key, cursor)) = missing.first().cloned() {
            let mut keys = Vec::new();
            missing.retain(|(other, its)| {
                let goes = *other == key || (!singly && other.0 == key.0 && *its == cursor);
                if goes {
                    keys.push(*other);
                }
                !goes
            });
            let resume = if self.is_plain {
                Resume::Absent
            } else {
                choose(cursor.as_ref())
            };
            let bindings: Vec<&str> = keys.iter().map(|key| key.1).collect();
            let mut data = json!({"account_id": ACCOUNTS[key.0], "bindings": bindings});
            let past = match &resume {
                Resume::Absent => None,
                Resume::FromNow => Some(true.into()),
                Resume::Own(cursor) | Resume::Any(cursor) => Some(cursor.text.clone().into()),
                Resume::Future(cursor) => Some(cursor.moved(86_400_000).into()),
                Resume::Yesterday(cursor) => Some(cursor.moved(-86_400_000).into()),
                Resume::Garbage(garbage) => Some(garbage.clone()),
            };
            if let Some(past) = past {
                data["resume"] = past;
            }
            self.note(clock, format!("asks {} {resume:?}", data));
            self.ask(
                json!({"action": "subscribe", "data": data}),
                Asked::Subscribe(keys, resume),
            );
        }
    }

    /// Reads at most so many frames. The rest stays unread.
    pub(super) fn read(&mut self, frames_max: usize, around: &Around<'_>, tally: &mut Tally) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let mut bytes = std::mem::take(&mut connection.wire.borrow_mut().to_client);
        if !connection.is_upgraded {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                connection.wire.borrow_mut().to_client = bytes;
                self.connection = Some(connection);
                return;
            };
            connection.is_upgraded = true;
            connection.judged += end as u64 + 4;
            bytes.drain(..end + 4);
        }
        let (frames, _) = server_frames(&bytes);
        let mut used = 0;
        for (opcode, payload) in frames.into_iter().take(frames_max) {
            let header = match payload.len() {
                ..126 => 2,
                126..=0xFFFF => 4,
                _ => 10,
            };
            used += header + payload.len();
            connection.judged += (header + payload.len()) as u64;
            let latest = connection.latest_at(connection.judged);
            match opcode {
                1 => {
                    let frame = serde_json::from_slice(&payload).expect("JSON");
                    self.judge(&mut connection, &frame, latest, around, tally);
                }
                8 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    self.note(around.clock, format!("closed with {code}"));
                    // 1008: it has not said who it is in time.
                    let is_stranger = code == 1008 && connection.is_new;
                    if !matches!(code, 1001 | 4408) && !is_stranger {
                        self.fail("a close without a cause");
                    }
                    connection.is_over = true;
                }
                9 => {
                    let pong = client_frame(0x8A, &payload);
                    connection.wire.borrow_mut().answer(&pong);
                }
                _ => {}
            }
        }
        bytes.drain(..used);
        let mut wire = connection.wire.borrow_mut();
        wire.to_client = bytes;
        connection.is_over |= wire.server_shut && wire.to_client.is_empty();
        drop(wire);
        self.connection = Some(connection);
    }

    /// The connection is no more: what was not read is lost.
    pub(super) fn forget_connection(&mut self, clock: Duration, why: &str) -> Option<Connection> {
        let connection = self.connection.take()?;
        self.note(clock, format!("cut: {why}"));
        if let Some(last) = connection.last_event {
            // It may have come by another subscription in the frame that was cut off.
            for sub in self.subs.values_mut() {
                sub.spared.insert(last);
            }
        }
        Some(connection)
    }

    fn judge(
        &mut self,
        connection: &mut Connection,
        frame: &Value,
        latest: u64,
        around: &Around<'_>,
        tally: &mut Tally,
    ) {
        match frame["action"].as_str() {
            Some("event") => self.judge_event(connection, frame, latest, around, tally),
            Some("reply") => self.judge_reply(connection, frame, latest, around, tally),
            Some("notice") => self.judge_notice(connection, frame, latest, around, tally),
            _ => self.fail(&frame.to_string()),
        }
    }

    /// The cursor of a frame is from now on that of all that is live here.
    fn take_cursor(&mut self, connection: &Connection, text: &str, latest: u64) -> Cursor {
        // One that came from another process says so still.
        let mut known =
            (self.subs.values().filter_map(|sub| sub.cursor.as_ref())).chain(&connection.came_with);
        let known = known.find(|known| known.text == text).cloned();
        let cursor = known.unwrap_or_else(|| Cursor {
            text: text.to_owned(),
            sent_at: latest,
            incarnation: connection.incarnation,
        });
        for key in connection.live.iter() {
            let sub = self.subs.get_mut(key).expect("one of its own");
            sub.cursor = Some(cursor.clone());
            sub.is_ahead = false;
        }
        cursor
    }

    fn judge_event(
        &mut self,
        connection: &mut Connection,
        frame: &Value,
        latest: u64,
        around: &Around<'_>,
        tally: &mut Tally,
    ) {
        let number = frame["args"]["Number"].as_u64().expect("a number");
        let binding = frame["subscribed_key"].as_str().expect("a string");
        let published = around.log.get(number);
        let is_replayed = frame["replayed"] == true;
        self.note(
            around.clock,
            format!(
                "got {number} {} of {}:{} for {binding} {} {}",
                if is_replayed { "again" } else { "live" },
                published.publisher,
                published.routing_key,
                frame["cursor"],
                connection.incarnation,
            ),
        );
        // One that waits for its reply behind another's is live already.
        let waiting = connection.asked.iter().flat_map(|(_, asked)| match asked {
            Asked::Subscribe(keys, _) => &keys[..],
            _ => &[],
        });
        let mut keys = connection.live.iter().chain(waiting);
        let Some(key) = keys.find(|key| key.1 == binding).copied() else {
            self.fail(&format!("{binding} is no subscription here: {frame}"));
        };
        // Between the event and the frame a realm may have moved.
        let mut rights = around.rights.iter();
        if !rights.any(|rights| is_for(key, &published.routing_key, published.whose, rights)) {
            self.fail(&format!("foreign: {frame} for {key:?}"));
        }
        tally.events += 1;
        if is_replayed != connection.replay.is_some() {
            self.fail(&format!(
                "replayed or not: {frame}, {:?}",
                connection.replay
            ));
        }
        let before = connection.last.insert((key, published.publisher), number);
        if before.is_some_and(|before| before >= number) {
            self.fail(&format!("{number} behind {before:?} for {key:?}"));
        }
        let sub = self.subs.get_mut(&key).expect("one of its own");
        let sent_by = sub.got.insert(number, connection.incarnation);
        let is_double = sent_by.is_some();
        // What it has of another process is no concern of this one.
        let is_exact = connection.is_exact && sent_by == Some(connection.incarnation);
        sub.is_ahead |= !connection.live.contains(&key);
        connection.last_event = Some(number);
        if let Some(replay) = &mut connection.replay {
            replay.frames += 1;
            tally.replayed += 1;
            tally.doubles += u64::from(is_double);
            if is_exact {
                self.fail(&format!(
                    "a double in the same process: {number} for {key:?}"
                ));
            }
        } else if is_double {
            // This process may have taken it in later than the one that sent it before.
            let is_answered = connection.live.contains(&key);
            if is_answered && (is_exact || number > connection.subscribed_at) {
                self.fail(&format!("a live double: {number} for {key:?}"));
            }
            tally.live_doubles += 1;
        }
        match frame["cursor"].as_str() {
            None if !HAS_HISTORY || !around.process.has_history() => {}
            None => self.fail(&format!("no cursor: {frame}")),
            Some(text) => {
                let cursor = self.take_cursor(connection, text, latest);
                if cursor.text.split('.').next() != Some(&*published.id) {
                    self.fail(&format!("not the id {}: {frame}", published.id));
                }
                if !connection.rises(&cursor) {
                    self.fail(&format!("back to {cursor:?}"));
                }
            }
        }
    }

    fn judge_reply(
        &mut self,
        connection: &mut Connection,
        frame: &Value,
        latest: u64,
        around: &Around<'_>,
        tally: &mut Tally,
    ) {
        let id = frame["request_id"].as_str().expect("a string");
        let place = connection.asked.iter().position(|(one, _)| one == id);
        let Some((_, asked)) = place.and_then(|place| connection.asked.remove(place)) else {
            self.fail(&format!("a reply to nothing: {frame}"));
        };
        connection.is_new = false;
        if frame["status"] != "success" {
            self.note(around.clock, format!("refused {frame}"));
            return self.judge_error(&asked, frame, tally);
        }
        let data = &frame["data"];
        match asked {
            Asked::Ping => {}
            Asked::Unsubscribe(key) => connection.forget(key),
            Asked::Subscribe(keys, resume) => {
                self.note(
                    around.clock,
                    format!(
                        "has {keys:?}: {} {} ({latest})",
                        data["cursor"], data["resumed"]
                    ),
                );
                self.judge_subscribed(connection, &keys, resume, data, latest, tally);
            }
        }
        if let Some(text) = data["cursor"].as_str() {
            let cursor = self.take_cursor(connection, text, latest);
            // A resume takes the session back.
            connection.last_cursor = Some(cursor);
        }
    }

    fn judge_error(&mut self, asked: &Asked, frame: &Value, tally: &mut Tally) {
        let Asked::Subscribe(keys, resume) = asked else {
            self.fail(&format!("{asked:?}: {frame}"));
        };
        match frame["data"]["errors"][0].as_str() {
            Some("event source unavailable") => tally.unavailable += 1,
            Some("invalid resume") if matches!(resume, Resume::Garbage(_)) => tally.garbage += 1,
            Some("unauthorized account id" | "no available subscriptions to requested binding") => {
                // One of several: each is asked for singly.
                if let [key] = keys[..] {
                    let sub = self.subs.get_mut(&key).expect("one of its own");
                    sub.end();
                    sub.is_refused = true;
                }
                tally.refused += 1;
            }
            _ => self.fail(&format!("{asked:?}: {frame}")),
        }
    }

    fn judge_subscribed(
        &mut self,
        connection: &mut Connection,
        keys: &[Key],
        resume: Resume,
        data: &Value,
        latest: u64,
        tally: &mut Tally,
    ) {
        for key in keys {
            connection.live.insert(*key);
        }
        let resumed = data["resumed"].as_bool();
        connection.subscribed_at = latest;
        let is_at_its_cursor = |key: &Key| !self.subs[key].is_ahead && !self.subs[key].is_behind;
        connection.is_exact &= keys.iter().all(is_at_its_cursor)
            && resumed == Some(true)
            && matches!(&resume, Resume::Own(cursor) if cursor.incarnation == connection.incarnation);
        let (cursor, is_own) = match &resume {
            Resume::Absent | Resume::FromNow => {
                if resumed.is_some() {
                    self.fail(&format!("resumed for {resume:?}: {data}"));
                }
                for key in keys {
                    let sub = self.subs.get_mut(key).expect("one of its own");
                    sub.excuse(0, latest);
                    sub.owed_after.get_or_insert(latest);
                }
                return;
            }
            Resume::Own(cursor) => (cursor, true),
            Resume::Any(cursor) | Resume::Future(cursor) | Resume::Yesterday(cursor) => {
                (cursor, false)
            }
            Resume::Garbage(_) if !HAS_HISTORY => return,
            Resume::Garbage(_) => self.fail(&format!("resumed with garbage: {data}")),
        };
        if resumed.is_none() && HAS_HISTORY {
            self.fail(&format!("neither yes nor no: {data}"));
        }
        let is_same = cursor.incarnation == connection.incarnation;
        connection.came_with.push(cursor.clone());
        let is_honest = is_own || matches!(resume, Resume::Any(_));
        for key in keys {
            let sub = self.subs.get_mut(key).expect("one of its own");
            match resumed {
                Some(true) if is_own => {}
                Some(true) => sub.excuse(0, cursor.sent_at),
                _ => sub.excuse(0, latest),
            }
            sub.owed_after.get_or_insert(latest);
            sub.is_behind = match resumed {
                Some(true) => sub.is_behind || !is_own || !is_same,
                _ => false,
            };
        }
        if resumed == Some(true) {
            if !is_honest {
                self.fail(&format!("resumed with {resume:?}: {data}"));
            }
            let before = connection.replay.take();
            connection.replay = Some(Replay {
                frames: before.map_or(0, |before| before.frames),
            });
            match is_same {
                true => tally.resumed_here += 1,
                false => tally.resumed_elsewhere += 1,
            }
        } else if resumed == Some(false) {
            connection.gaps_due += 1;
        }
    }

    fn judge_notice(
        &mut self,
        connection: &mut Connection,
        frame: &Value,
        latest: u64,
        around: &Around<'_>,
        tally: &mut Tally,
    ) {
        self.note(around.clock, format!("told {frame} ({latest})"));
        let data = &frame["data"];
        let reason = data["reason"].as_str().unwrap_or_default();
        match (frame["name"].as_str().unwrap_or_default(), reason) {
            ("subscriptions_ended", _) => {
                for binding in data["bindings"].as_array().expect("a list") {
                    let binding = binding.as_str().expect("a string");
                    let keys: Vec<Key> = connection.live.iter().copied().collect();
                    let Some(key) = keys.into_iter().find(|key| key.1 == binding) else {
                        self.fail(&format!("ended what it had not: {frame}"));
                    };
                    connection.forget(key);
                    self.subs.get_mut(&key).expect("one of its own").end();
                }
                tally.ended += 1;
            }
            ("resumed", _) => {
                let Some(replay) = connection.replay.take() else {
                    self.fail(&format!("resumed what did not: {frame}"));
                };
                if data["events"]
                    .as_u64()
                    .is_none_or(|events| events > replay.frames)
                {
                    self.fail(&format!("{replay:?}: {frame}"));
                }
                tally.caught_up += 1;
                for key in &connection.live {
                    self.subs.get_mut(key).expect("one of its own").is_behind = false;
                }
            }
            ("gap", "resume") => {
                let why = data["why"].as_str().unwrap_or_default();
                let known = ["expired", "unknown", "too_many", "outage"];
                let Some(place) = known.iter().position(|one| *one == why) else {
                    self.fail(&frame.to_string());
                };
                tally.not_resumed[place] += 1;
                if connection.gaps_due > 0 {
                    connection.gaps_due -= 1;
                } else if connection.replay.take().is_some() {
                    tally.given_up += 1;
                    self.excuse_all(connection, 0, latest);
                } else {
                    self.fail(&format!("told of a gap in nothing: {frame}"));
                }
            }
            ("gap", "event_source") => {
                let outages = around.process.outages.iter();
                let begun: Vec<_> = outages
                    .filter(|outage| {
                        around.log.before(outage.from) <= latest && outage.last.is_some()
                    })
                    .collect();
                // Without a history every outage is told.
                // A realm that moved needs other bindings, and the time without them is told.
                if begun.is_empty() && HAS_HISTORY && around.rights.len() == 1 {
                    self.fail(&format!("there was no outage: {frame}"));
                }
                for outage in begun {
                    let after = around.log.before(outage.from.saturating_sub(LAG_MAX));
                    self.excuse_all(connection, after, outage.last.expect("over"));
                }
                tally.outages_told += 1;
            }
            ("gap", "slow_consumer") => {
                self.excuse_all(connection, 0, latest);
                tally.dropped += data["dropped"].as_u64().expect("a number");
            }
            ("going_away", _) => connection.is_told_to_go = true,
            _ => self.fail(&format!("{frame}")),
        }
    }

    fn excuse_all(&mut self, connection: &Connection, after: u64, to: u64) {
        for key in connection.live.iter() {
            let sub = self.subs.get_mut(key).expect("one of its own");
            sub.excuse(after, to);
        }
    }

    /// Panics unless everything that it is owed has come.
    pub(super) fn check_debts(&self, log: &Log, rights: &Rights, tally: &mut Tally) {
        for (key, sub) in &self.subs {
            for number in 1..=log.latest() {
                let published = log.get(number);
                if !is_for(*key, &published.routing_key, published.whose, rights) {
                    continue;
                }
                tally.checked += 1;
                if sub.is_owed(number) {
                    self.fail(&format!(
                        "{number}, published at {:.3?}, never came for {key:?}, owed after {:?}, excused {:?}",
                        published.at, sub.owed_after, sub.excused
                    ));
                }
            }
        }
    }
}
