//! Step 3 of the turn: the stream of the history, read while somebody resumes from before this process's own history.
//!
//! Invariants: a turn takes [`BATCHES_PER_TURN_MAX`] batches, and asks [`ASKED_PER_TURN_MAX`] of those who wait. The
//! reader is asked for more only while there is room, so a session that does not read holds nothing up but itself: what it
//! has not been sent is forgotten when room is needed, and it is told.

use std::collections::VecDeque;
use std::time::Duration;

use super::Reactor;
use super::socket::Socket;
use super::store::Store;
use crate::handoff::stored::{BATCHES_AHEAD, FromReader, Read, ToReader};
use crate::history::{STORED_END, Seq, Why};
use crate::session::Session;
use crate::session::clock::Now;

/// Batches taken in one turn: some 0.1 ms each.
const BATCHES_PER_TURN_MAX: usize = 1;

/// Subscribes that are asked again in one turn. Each costs its bindings' keys, some 10 µs for a usual one.
const ASKED_PER_TURN_MAX: usize = 32;

/// How often all who resume are looked at while nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a read that somebody waits for goes on at least, although another wants it from further back.
const READ_MIN: Duration = Duration::from_secs(2);

/// How long the stream is still read after the last session that needed it: others of the same storm come.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long those under way hold back a read from further back, for which others wait. Then the stream is read anew: who is
/// under way goes on where it is, once that was read again. So a session that does not read holds up nobody for longer.
const GROUP_MAX: Duration = Duration::from_secs(3);

/// How long sessions that do not read may keep all the room, while others wait for more of the stream.
const STUCK_MAX: Duration = Duration::from_secs(1);

impl<S: Socket> Reactor<S> {
    /// Takes what the reader has read, and tells it and the keeper what to do.
    pub(super) fn go_on_with_stored(&mut self, now: Now) {
        let Some(mut store) = self.store.take() else {
            return;
        };
        for keys in self.hub.past.take_to_keep() {
            if !store.end.keep(keys) {
                log::warn!("too many families for the stream of the history");
            }
        }
        store.has_news |= (self.hub.past).note_written(store.end.written_unix_ms(), now);
        let mut has_taken = false;
        for _ in 0..BATCHES_PER_TURN_MAX {
            match store.end.try_recv() {
                Some(FromReader::Items(read, items)) if read == store.read => {
                    has_taken = true;
                    store.owed += 1;
                    let (has_marker, has_hole) = self.hub.past.take_in(items);
                    if has_hole {
                        self.hub.resumers.fail_stored(Why::Outage);
                    }
                    store.has_news |= has_marker;
                    self.laps.is_dry = false;
                    self.hub.resumers.note_news();
                }
                Some(FromReader::Failed(read, why)) if read == store.read => {
                    self.hub.past.end();
                    self.hub.resumers.fail_stored(why);
                    store.has_failed = true;
                }
                Some(FromReader::Items(..) | FromReader::Failed(..)) => {}
                None => break,
            }
        }
        self.ask_those_who_wait(&mut store, now);
        self.begin_read(&mut store, now);
        let is_due = has_taken || now.clock >= store.looked_at + LOOK_INTERVAL;
        if is_due {
            store.looked_at = now.clock;
            if self.hub.past.is_read() {
                self.look_at_read(&mut store, now);
            }
        }
        self.store = Some(store);
    }

    /// Whether there is more to do at once.
    pub(super) fn has_stored(&self) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|store| store.end.waiting() > 0 || !store.asking.is_empty())
    }

    /// When it is looked whether the stream is still needed, or can be read by now, on the loop's clock.
    pub(super) fn stored_due(&self) -> Option<Duration> {
        let store = self.store.as_ref()?;
        let due = store.looked_at + LOOK_INTERVAL;
        let past = &self.hub.past;
        (past.is_read() || past.is_waited_for()).then_some(due)
    }

    /// Asks those who wait, some a turn, whether what has become known is enough for them.
    fn ask_those_who_wait(&mut self, store: &mut Store, now: Now) {
        if store.has_failed {
            store.asking.extend(self.hub.past.take_waiters());
        } else if store.has_news && store.asking.is_empty() {
            store.has_news = false;
            store.asking = self.hub.past.take_waiters().into();
        }
        let how = if store.has_failed {
            Session::on_stored_failed
        } else {
            Session::on_stored
        };
        for _ in 0..ASKED_PER_TURN_MAX {
            let Some(waiter) = store.asking.pop_front() else {
                break;
            };
            self.resume(waiter, now, how);
        }
        if store.asking.is_empty() {
            store.asking = VecDeque::new();
            store.has_failed = false;
        }
    }

    /// Has the stream read from further back, if somebody waits for that, and would come to its end.
    fn begin_read(&mut self, store: &mut Store, now: Now) {
        if !self.hub.past.has_end(now) {
            return;
        }
        let Some(from_unix_ms) = self.hub.past.to_read_from() else {
            return;
        };
        // One group after the other: who is under way is not thrown back by each who comes.
        if self.hub.past.is_read()
            && self.hub.resumers.earliest_stored().is_some()
            && now.clock < store.begun_at + GROUP_MAX
        {
            return;
        }
        // Nor may who comes with ever older cursors keep those from an answer who wait for this read.
        let is_wanted = self.hub.past.is_read_for_somebody() || !store.asking.is_empty();
        if is_wanted && now.clock < store.begun_at + READ_MIN {
            return;
        }
        store.read = Read(store.read.0.wrapping_add(1));
        store.owed = 0;
        (store.needed_at, store.begun_at, store.room_at) = (now.clock, now.clock, now.clock);
        let begin = ToReader::Begin {
            read: store.read,
            from_unix_ms,
        };
        if store.end.tell(begin) {
            self.hub.past.begin(from_unix_ms);
            self.laps.lap = None;
        } else {
            // It takes no commands: it hangs, until its own deadline.
            store.has_failed = true;
            store.asking.extend(self.hub.past.take_waiters());
        }
    }

    /// Asks for more, where there is room; or for no more, where nobody needs it. Linear in those who resume.
    fn look_at_read(&mut self, store: &mut Store, now: Now) {
        if !self.hub.past.has_end(now) {
            // However far they are sent on, they do not come to the present.
            self.hub.resumers.fail_stored(Why::Outage);
        }
        let earliest = self.hub.resumers.earliest_stored();
        if earliest.is_some() || self.hub.past.is_waited_for() || !store.asking.is_empty() {
            store.needed_at = now.clock;
        } else if now.clock >= store.needed_at + IDLE_MAX {
            self.hub.past.end();
            store.end.tell(ToReader::End(store.read));
            return;
        }
        let is_held_up = self.hub.past.is_waited_for() && now.clock >= store.room_at + STUCK_MAX;
        let needed = if is_held_up {
            self.hub.resumers.earliest_stored_ready()
        } else {
            earliest
        };
        let room = self.hub.past.make_room(needed.unwrap_or(STORED_END));
        if room {
            store.room_at = now.clock;
        }
        while room && store.owed > 0 && store.end.tell(ToReader::More(store.read)) {
            store.owed -= 1;
        }
        debug_assert!(store.owed <= BATCHES_AHEAD);
        let gone = |seq: Seq| !self.hub.past.holds(seq);
        self.hub.resumers.fail_stored_if(Why::Expired, gone);
    }
}
