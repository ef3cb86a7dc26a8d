//! Witnesses: sessions that live as long as the soak and keep the books ([`crate::ledger`]) of all that they get.
//!
//! Some change their subscriptions all the time: what they have unsubscribed from must stay away, and what they have
//! subscribed to must come from the reply on. Some lose their connection and come back ([`crate::returner`]). One thread
//! drives them all.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token};
use serde_json::json;
use socket2::SockRef;

use crate::client::{BUFFER_BYTES, Client, Gap, Heard, Message, Reply};
use crate::ledger::{Notice, Stream};
use crate::publisher::Ledger;
use crate::returner::{Loss, Returner, Returns};
use crate::world::{Kind, PARENT, SUPERDUPER, World};
use shared::frames::masked;
use shared::socket::upgrade_request;

/// Longest wait for the poll.
const TURN: Duration = Duration::from_millis(20);

/// Longest wait for a reply: a subscribe waits for the broker, and is answered in the end.
const REPLY_PATIENCE: Duration = Duration::from_secs(60);

/// Longest wait for events that are on their way when the publisher rests.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);

/// The error of a subscribe that the broker did not confirm in time: it is sent again.
const UNAVAILABLE: &str = "event source unavailable";

/// Texts of faults that are kept.
const FAULTS_TOLD: usize = 20;

/// What all witnesses have seen so far.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) witnesses: usize,
    /// Events checked.
    pub(crate) events: u64,
    /// Of those not got: announced by a notice; never confirmed by the broker; lost in silence.
    pub(crate) announced: u64,
    pub(crate) unconfirmed: u64,
    pub(crate) missing: u64,
    /// Repeated or in the wrong order.
    pub(crate) out_of_order: u64,
    /// Of another account, or of what was not subscribed.
    pub(crate) foreign: u64,
    /// Sessions that ended, were refused something or heard nonsense.
    pub(crate) broken: u64,
    /// Gap notices, and the longest gap of any in microseconds.
    pub(crate) notices: u64,
    pub(crate) longest_gap: u64,
    /// Subscribes that the broker did not confirm in time.
    pub(crate) unavailable: u64,
    /// From publish to receipt, in microseconds, of events published in calm times.
    pub(crate) latency: Histogram<u64>,
    /// Of those who lose their connection.
    pub(crate) returns: Returns,
    /// The first faults in words.
    pub(crate) faults: Vec<String>,
}

impl Tally {
    fn fault(&mut self, text: impl FnOnce() -> String) {
        if self.faults.len() < FAULTS_TOLD {
            self.faults.push(text());
        }
    }
}

/// What the witnesses are told.
pub(crate) enum Order {
    /// The publisher rests: have all subscriptions, wait for what is under way, close the books, answer, and stay so.
    Rest,
    /// Change subscriptions again.
    GoOn,
    /// Leave, half of you without a word; answer and end.
    Leave,
}

/// A subscription that a witness is to have.
struct Wanted {
    account: String,
    binding: String,
    state: State,
    /// One for each lane that it matches.
    streams: Vec<(usize, Option<Stream>)>,
}

/// What a witness does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stays,
    /// Changes its subscriptions.
    Moves,
    /// Loses its connection and comes back.
    Returns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Subscribing,
    On,
    Unsubscribing,
}

struct Witness {
    /// `None`: it is away.
    client: Option<Client>,
    name: String,
    token: String,
    /// Sent with subscribes, and to be on their events.
    request_id: Option<String>,
    path: &'static str,
    is_bearer: bool,
    is_mover: bool,
    returner: Option<Returner>,
    wanted: Vec<Wanted>,
    /// For each command under way, the place in `wanted` of what it is about.
    asked: VecDeque<Vec<usize>>,
    asked_at: Instant,
    notices: Vec<Notice>,
    next_move: Instant,
    is_open: bool,
    has_ended: bool,
}

/// All witnesses.
pub(crate) struct Witnesses {
    address: SocketAddr,
    /// Since when nothing is being done to the broker.
    calm_since: Option<Instant>,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    witnesses: Vec<Witness>,
    ledger: Arc<Ledger>,
    world: Arc<World>,
    rng: Rng,
    tally: Tally,
    rest: Rest,
}

/// Whether subscriptions change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    No,
    /// They are to come to rest, since then.
    Wanted(Instant),
    Reached,
}

impl Witnesses {
    /// Seven for each account, and five who see several or all.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub(crate) fn connect(
        address: SocketAddr,
        ledger: Arc<Ledger>,
        world: Arc<World>,
        rng: Rng,
    ) -> io::Result<Self> {
        let latency = Histogram::new_with_max(600_000_000, 3).map_err(io::Error::other)?;
        let mut all = Self {
            address,
            calm_since: None,
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            buffer: vec![0; BUFFER_BYTES],
            witnesses: Vec::new(),
            ledger,
            rng,
            tally: Tally {
                witnesses: 0,
                events: 0,
                announced: 0,
                unconfirmed: 0,
                missing: 0,
                out_of_order: 0,
                foreign: 0,
                broken: 0,
                notices: 0,
                longest_gap: 0,
                unavailable: 0,
                latency,
                returns: Returns::default(),
                faults: Vec::new(),
            },
            rest: Rest::No,
            world: world.clone(),
        };
        let each = |kinds: &[Kind]| {
            kinds
                .iter()
                .map(|kind| (kind.binding(), vec![*kind]))
                .collect::<Vec<_>>()
        };
        let calls = ("call.*.*".to_owned(), Kind::CALLS.to_vec());
        let documents = ("object.doc_edited.user".to_owned(), vec![Kind::Document]);
        for account in 0..world.accounts.len() {
            let overlapping = [
                vec![calls.clone(), documents.clone()],
                each(&[Kind::Create, Kind::Document]),
            ]
            .concat();
            let lists = [
                ("all", each(&Kind::ALL), "/", Way::Stays),
                (
                    "kazoo",
                    [vec![calls.clone()], each(&Kind::ALL[3..])].concat(),
                    "/?style=kazoo",
                    Way::Stays,
                ),
                ("overlapping", overlapping, "/", Way::Stays),
                ("moving", each(&Kind::ALL), "/", Way::Moves),
                (
                    "moving kazoo",
                    [vec![calls.clone()], each(&Kind::ALL)].concat(),
                    "/?style=kazoo",
                    Way::Moves,
                ),
                // Each event once, so that a loss between two frames of one event is none.
                ("returning", each(&Kind::ALL), "/", Way::Returns),
                (
                    "returning kazoo",
                    [vec![calls.clone()], each(&Kind::ALL[3..])].concat(),
                    "/?style=kazoo",
                    Way::Returns,
                ),
            ];
            for (number, (what, bindings, path, way)) in lists.into_iter().enumerate() {
                let token = world.accounts[account].token.clone();
                let wanted = bindings
                    .into_iter()
                    .map(|(binding, kinds)| (vec![account], binding, kinds));
                let name = format!("{what} of account {account}");
                all.add(name, token, path, (way, number), wanted.collect())?;
            }
        }
        let own = |binding: &(String, Vec<Kind>), account| {
            (vec![account], binding.0.clone(), binding.1.clone())
        };
        let everybody: Vec<usize> = (0..world.accounts.len()).collect();
        for (number, way) in [(0, Way::Stays), (1, Way::Moves)] {
            let wanted = everybody
                .iter()
                .flat_map(|account| [own(&calls, *account), own(&documents, *account)])
                .collect();
            let name = format!("parent {number}");
            all.add(name, PARENT.into(), "/", (way, number), wanted)?;
            let mut wanted = vec![(everybody.clone(), calls.0.clone(), calls.1.clone())];
            for kind in [Kind::Create, Kind::Fax] {
                wanted.push((everybody.clone(), kind.binding(), vec![kind]));
            }
            let name = format!("superduper {number}");
            all.add(name, SUPERDUPER.into(), "/", (way, number), wanted)?;
        }
        all.tally.witnesses = all.witnesses.len();
        Ok(all)
    }

    /// Adds one; `wanted`: accounts by index, more than one for the account `*`, a binding, and the kinds that match it.
    fn add(
        &mut self,
        name: String,
        token: String,
        path: &'static str,
        (way, number): (Way, usize),
        wanted: Vec<(Vec<usize>, String, Vec<Kind>)>,
    ) -> io::Result<()> {
        let place = Token(self.witnesses.len());
        let client = Client::connect(self.address, None, None, self.poll.registry(), place)?;
        let wanted = wanted.into_iter().map(|(accounts, binding, kinds)| {
            let lanes = accounts
                .iter()
                .flat_map(|account| kinds.iter().map(|kind| self.world.lane(*account, *kind)));
            Wanted {
                account: match accounts[..] {
                    [account] => self.world.accounts[account].id.clone(),
                    _ => "*".to_owned(),
                },
                binding,
                state: State::Off,
                streams: lanes.map(|lane| (lane, None)).collect(),
            }
        });
        let wanted = wanted.collect();
        let returner = (way == Way::Returns).then(|| Returner::new(&mut self.rng));
        self.witnesses.push(Witness {
            client: Some(client),
            name,
            token,
            request_id: number.is_multiple_of(2).then(|| format!("soak-{number}")),
            path,
            is_bearer: number.is_multiple_of(3),
            is_mover: way == Way::Moves,
            returner,
            wanted,
            asked: VecDeque::new(),
            asked_at: Instant::now(),
            notices: Vec::new(),
            next_move: Instant::now(),
            is_open: false,
            has_ended: false,
        });
        Ok(())
    }

    /// Serves until told to leave, or until whoever gives the orders is gone.
    ///
    /// # Errors
    /// The poll failed.
    pub(crate) fn serve(
        mut self,
        orders: &Receiver<Order>,
        answers: &Sender<Tally>,
    ) -> io::Result<()> {
        loop {
            match orders.try_recv() {
                Ok(Order::Rest) => self.rest = Rest::Wanted(Instant::now()),
                Ok(Order::GoOn) => self.rest = Rest::No,
                Ok(Order::Leave) => {
                    self.leave();
                    let _ = answers.send(self.tally);
                    return Ok(());
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            self.turn()?;
            if let Rest::Wanted(since) = self.rest
                && (self.has_come_to_rest() || since.elapsed() > CATCH_UP_PATIENCE + REPLY_PATIENCE)
            {
                self.close_books();
                self.rest = Rest::Reached;
                let _ = answers.send(self.tally.clone());
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(TURN)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut heard = Vec::new();
        let ready: Vec<_> = self
            .events
            .iter()
            .map(|event| (event.token().0, event.is_writable()))
            .collect();
        for (place, is_writable) in ready {
            let witness = &mut self.witnesses[place];
            if witness.has_ended {
                continue;
            }
            // What the poll told of a connection that was given up since is nothing.
            let Some(client) = &mut witness.client else {
                continue;
            };
            client.turn(is_writable, false, &mut self.buffer, &mut heard);
            for heard in heard.drain(..) {
                self.hear(place, heard);
            }
        }
        if self.ledger.is_calm.load(Ordering::SeqCst) {
            self.calm_since.get_or_insert_with(Instant::now);
        } else {
            self.calm_since = None;
        }
        for place in 0..self.witnesses.len() {
            self.come_and_go(place)?;
            self.ask(place);
        }
        Ok(())
    }

    /// Gives a returner's connection up, or makes it a new one, when it is time.
    fn come_and_go(&mut self, place: usize) -> io::Result<()> {
        let now = Instant::now();
        let witness = &mut self.witnesses[place];
        let Some(returner) = &mut witness.returner else {
            return Ok(());
        };
        let is_resting = self.rest != Rest::No;
        if returner.returns(now, is_resting, &mut self.rng) {
            let (registry, token) = (self.poll.registry(), Token(place));
            let client = Client::connect(self.address, None, None, registry, token)?;
            witness.client = Some(client);
            return Ok(());
        }
        if is_resting || witness.has_ended {
            return Ok(());
        }
        let Some(loss) = returner.goes(now, &mut self.rng) else {
            return Ok(());
        };
        returner.gone(now, self.calm_since, &mut self.rng);
        self.tally.returns.losses += 1;
        if let Some(mut client) = witness.client.take() {
            match loss {
                Loss::CloseFrame => client.send(&masked(0x8, &1000_u16.to_be_bytes())),
                // A header that promises more.
                Loss::MidFrame => client.send(&[0x81, 0xFE]),
                Loss::Reset => {
                    let _ = SockRef::from(&client.stream).set_linger(Some(Duration::ZERO));
                }
                Loss::Fin => {}
            }
        }
        witness.is_open = false;
        witness.asked.clear();
        for wanted in &mut witness.wanted {
            wanted.state = State::Off;
        }
        Ok(())
    }

    fn hear(&mut self, place: usize, heard: Heard) {
        let witness = &mut self.witnesses[place];
        match heard {
            Heard::Connected => {
                let bearer = witness.is_bearer.then_some(&*witness.token);
                let request = upgrade_request(self.address, witness.path, bearer, None, None);
                if let Some(client) = &mut witness.client {
                    client.send(request.as_bytes());
                }
            }
            Heard::Upgraded => witness.is_open = true,
            Heard::Text(Message::Reply(reply)) => self.reply(place, reply),
            Heard::Text(Message::Gap(Gap::Source(micros))) => {
                let at = self.ledger.now();
                self.tally.notices += 1;
                self.tally.longest_gap = self.tally.longest_gap.max(micros);
                witness.notices.push(Notice { at, micros });
            }
            Heard::Text(Message::Gap(Gap::Slow)) => {
                self.tally.notices += 1;
                self.broken(place, "told that it reads too slowly".into(), false);
            }
            Heard::Text(Message::Gap(Gap::Resume(why))) => self.not_resumed(place, why),
            Heard::Text(Message::Resumed(events)) => {
                self.tally.returns.replayed += events;
                let returner = witness.returner.as_mut();
                if returner.and_then(|one| one.resumed_with.take()).is_none() {
                    self.broken(place, "a resume that it did not ask for".into(), false);
                }
            }
            Heard::Text(Message::Event {
                subscribed_key,
                request_id,
                numbered,
                cursor,
                is_replayed,
            }) => {
                self.tally.events += 1;
                let is_replaying = match &mut witness.returner {
                    Some(returner) => {
                        returner.stand_at(cursor.clone());
                        returner.resumed_with.is_some()
                    }
                    None => false,
                };
                if is_replayed != is_replaying {
                    let complaint =
                        format!("replayed {is_replayed}, and it resumes {is_replaying}");
                    return self.broken(place, complaint, false);
                }
                let now = self.ledger.now();
                if numbered.calm {
                    let latency = now.saturating_sub(numbered.at);
                    self.tally.latency.saturating_record(latency);
                }
                let lane = numbered.lane;
                let stream = witness
                    .wanted
                    .iter_mut()
                    .filter(|wanted| wanted.binding == subscribed_key && wanted.state != State::Off)
                    .flat_map(|wanted| &mut wanted.streams)
                    .find_map(|(own, stream)| stream.as_mut().filter(|_| *own == lane));
                let Some(stream) = stream.filter(|_| request_id == witness.request_id) else {
                    self.tally.foreign += 1;
                    let (name, of) = (&witness.name, self.world.of_lane(lane));
                    return self.tally.fault(|| {
                        format!("{name} got what it is not subscribed to: {subscribed_key}, {of:?}, {numbered:?}")
                    });
                };
                if is_replayed
                    && numbered.number <= stream.last()
                    && let Some(returner) = &witness.returner
                    && returner.may_be_double(cursor.as_deref())
                {
                    self.tally.returns.doubles += 1;
                    return;
                }
                let record = |number| self.ledger.record(lane, number);
                let entry = stream.take(numbered.number, &witness.notices, record);
                self.tally.announced += entry.announced;
                self.tally.unconfirmed += entry.unconfirmed;
                self.tally.missing += entry.missing.len() as u64;
                self.tally.out_of_order += u64::from(entry.is_out_of_order);
                if entry.is_out_of_order || !entry.missing.is_empty() {
                    let (name, number) = (&witness.name, numbered.number);
                    self.tally.fault(|| {
                        let what = if entry.is_out_of_order {
                            "repeated or late".to_owned()
                        } else {
                            let first = entry.missing.first().and_then(|first| record(*first));
                            let (missing, notices) = (&entry.missing, &witness.notices);
                            format!("before it {missing:?} missing, the first {first:?}, notices {notices:?}")
                        };
                        format!("{name}, {subscribed_key}, lane {lane}: {number} came, {what}, at {now} µs")
                    });
                }
            }
            Heard::Close(code) => self.broken(place, format!("closed with {code}"), true),
            Heard::Refused(complaint) | Heard::Nonsense(complaint) => {
                self.broken(place, complaint, true)
            }
            Heard::Ended(kind) => self.broken(place, format!("its connection ended: {kind}"), true),
        }
    }

    fn broken(&mut self, place: usize, complaint: String, is_over: bool) {
        let witness = &mut self.witnesses[place];
        if witness.has_ended {
            return;
        }
        witness.has_ended |= is_over;
        self.tally.broken += 1;
        let name = &witness.name;
        self.tally.fault(|| format!("{name}: {complaint}"));
    }

    /// A returner is told why events may be missing.
    fn not_resumed(&mut self, place: usize, why: String) {
        let Some(returner) = &mut self.witnesses[place].returner else {
            return self.broken(place, "a resume that it did not ask for".into(), false);
        };
        let is_needless = returner.is_needless(Instant::now(), self.calm_since);
        returner.resumed_with = None;
        self.begin_anew(place);
        *self.tally.returns.gaps.entry(why.clone()).or_default() += 1;
        if is_needless {
            self.broken(place, format!("a gap without a reason: {why}"), false);
        }
    }

    /// What was published so far may come to a returner or not.
    fn begin_anew(&mut self, place: usize) {
        let witness = &mut self.witnesses[place];
        for (lane, stream) in witness.wanted.iter_mut().flat_map(|it| &mut it.streams) {
            let published = self.ledger.published(*lane);
            if let Some(stream) = stream {
                let record = |number| self.ledger.record(*lane, number);
                let entry = stream.close(published, &witness.notices, record);
                self.tally.returns.told += entry.announced + entry.missing.len() as u64;
                self.tally.unconfirmed += entry.unconfirmed;
            }
            *stream = Some(Stream::new(published));
        }
    }

    fn reply(&mut self, place: usize, reply: Reply) {
        let Reply {
            errors,
            cursor,
            resumed,
        } = reply;
        let witness = &mut self.witnesses[place];
        let Some(asked) = witness.asked.pop_front() else {
            return self.broken(place, "a reply that was not asked for".into(), false);
        };
        witness.asked_at = Instant::now();
        if let Some(returner) = witness.returner.as_mut().filter(|_| asked.is_empty()) {
            // A ping. During a replay it tells how far that has come.
            if errors.is_empty() {
                returner.stand_at(cursor);
            }
            return;
        }
        let is_unavailable = errors == [UNAVAILABLE];
        let mut has_come_back = false;
        if let Some(returner) = &mut witness.returner
            && errors.is_empty()
        {
            has_come_back = returner.cursor.is_some();
            if resumed == Some(true) {
                returner.resumed_with.clone_from(&returner.cursor);
                self.tally.returns.resumed += 1;
            }
            returner.stand_at(cursor);
            if resumed.is_some() != has_come_back || returner.cursor.is_none() {
                let complaint = format!("resumed {resumed:?}, cursor {:?}", returner.cursor);
                return self.broken(place, complaint, true);
            }
            if resumed == Some(false) {
                // The notice, which says why, may be lost with the connection.
                self.begin_anew(place);
            }
        }
        let witness = &mut self.witnesses[place];
        for wanted in asked {
            let wanted = &mut witness.wanted[wanted];
            wanted.state = match wanted.state {
                // A notice tells if they do not go on.
                State::Subscribing if errors.is_empty() && has_come_back => State::On,
                State::Subscribing if errors.is_empty() => {
                    for (lane, stream) in &mut wanted.streams {
                        let published = self.ledger.published(*lane);
                        *stream = Some(Stream::new(published));
                    }
                    State::On
                }
                State::Subscribing if witness.returner.is_some() => State::Off,
                State::Unsubscribing | State::Subscribing => {
                    for (_, stream) in &mut wanted.streams {
                        *stream = None;
                    }
                    State::Off
                }
                state => state,
            };
        }
        if is_unavailable {
            self.tally.unavailable += 1;
        } else if !errors.is_empty() {
            self.broken(place, format!("refused: {errors:?}"), false);
        }
    }

    /// Subscribes to what is off, or changes something.
    fn ask(&mut self, place: usize) {
        let witness = &mut self.witnesses[place];
        if !witness.is_open || witness.has_ended {
            return;
        }
        if !witness.asked.is_empty() {
            if witness.asked_at.elapsed() > REPLY_PATIENCE {
                self.broken(place, "no reply came".into(), true);
            }
            return;
        }
        let now = Instant::now();
        if let Some(returner) = &witness.returner
            && self.rest == Rest::No
            && returner.is_stale(now)
            && witness
                .wanted
                .iter()
                .all(|wanted| wanted.state == State::On)
            && let Some(client) = &mut witness.client
        {
            client.send_text(r#"{"action":"ping"}"#);
            witness.asked.push_back(Vec::new());
            witness.asked_at = now;
            return;
        }
        let is_moving = witness.is_mover && self.rest == Rest::No;
        if is_moving && now < witness.next_move {
            return;
        }
        witness.next_move = now + Duration::from_millis(self.rng.u64(300..3_000));
        let off = witness
            .wanted
            .iter()
            .position(|wanted| wanted.state == State::Off);
        let on = witness
            .wanted
            .iter()
            .filter(|wanted| wanted.state == State::On)
            .count();
        let (action, picked) = match off {
            Some(off) if !is_moving || on == 0 || self.rng.bool() => {
                (State::Subscribing, witness.wanted[off].account.clone())
            }
            _ if is_moving && on > 0 => {
                let mut on = witness
                    .wanted
                    .iter()
                    .filter(|wanted| wanted.state == State::On);
                let picked = on.nth(self.rng.usize(..on.clone().count()));
                let Some(picked) = picked else { return };
                (State::Unsubscribing, picked.account.clone())
            }
            _ => return,
        };
        let from = match action {
            State::Subscribing => State::Off,
            _ => State::On,
        };
        // All or some of that account, in one command.
        let mut asked = Vec::new();
        for (number, wanted) in witness.wanted.iter_mut().enumerate() {
            let is_picked = wanted.state == from && wanted.account == picked;
            if is_picked && (!is_moving || asked.is_empty() || self.rng.bool()) {
                wanted.state = action;
                asked.push(number);
            }
        }
        let bindings: Vec<&str> = asked
            .iter()
            .map(|number| &*witness.wanted[*number].binding)
            .collect();
        let mut command = json!({
            "action": if action == State::Subscribing { "subscribe" } else { "unsubscribe" },
            "auth_token": witness.token, "data": {"account_id": picked, "bindings": bindings},
        });
        if let Some(request_id) = &witness.request_id {
            command["request_id"] = json!(request_id);
        }
        if let Some(returner) = &witness.returner {
            command["data"]["resume"] = match &returner.cursor {
                Some(cursor) => json!(cursor),
                None => json!(true),
            };
        }
        if let Some(client) = &mut witness.client {
            client.send_text(&command.to_string());
        }
        witness.asked.push_back(asked);
        witness.asked_at = now;
    }

    /// Whether everybody has all subscriptions and all events, or has waited long enough for them.
    fn has_come_to_rest(&self) -> bool {
        let is_late =
            matches!(self.rest, Rest::Wanted(since) if since.elapsed() > CATCH_UP_PATIENCE);
        self.witnesses
            .iter()
            .filter(|witness| !witness.has_ended)
            .all(|witness| {
                witness.wanted.iter().all(|wanted| {
                    wanted.state == State::On
                        && (is_late
                            || wanted.streams.iter().all(|(lane, stream)| {
                                let record = |number| self.ledger.record(*lane, number);
                                let published = self.ledger.published(*lane);
                                stream.is_some_and(|stream| {
                                    stream.is_complete(published, &witness.notices, record)
                                })
                            }))
                })
            })
    }

    /// Nothing more will come of what was published so far.
    fn close_books(&mut self) {
        for witness in &mut self.witnesses {
            for wanted in &mut witness.wanted {
                for (lane, stream) in &mut wanted.streams {
                    let Some(stream) = stream else { continue };
                    let record = |number| self.ledger.record(*lane, number);
                    let published = self.ledger.published(*lane);
                    let entry = stream.close(published, &witness.notices, record);
                    self.tally.announced += entry.announced;
                    self.tally.unconfirmed += entry.unconfirmed;
                    self.tally.missing += entry.missing.len() as u64;
                    if !entry.missing.is_empty() {
                        let (name, binding) = (&witness.name, &wanted.binding);
                        self.tally.fault(|| {
                            format!(
                                "{name}, {binding}, lane {lane}: at rest {:?} missing",
                                entry.missing
                            )
                        });
                    }
                }
            }
        }
    }

    /// Half of them say goodbye, which nobody waits for.
    fn leave(&mut self) {
        for witness in self.witnesses.iter_mut().step_by(2) {
            if let Some(client) = &mut witness.client {
                client.send(&masked(0x8, &1000_u16.to_be_bytes()));
            }
        }
    }
}
