//! Step 3 of the turn: the stream of the history, read while somebody resumes from before this process's own history.
//!
//! Invariants: a turn takes [`BATCHES_PER_TURN_MAX`] batches; the reader is asked for more only while there is room, so
//! a session that does not read holds nothing up but itself: what it has not been sent is forgotten when room is needed, and
//! it is told.

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

/// How long the stream is still read after the last session that needed it: others of the same storm come.
const IDLE_MAX: Duration = Duration::from_secs(10);

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
        for _ in 0..BATCHES_PER_TURN_MAX {
            match store.end.try_recv() {
                Some(FromReader::Items(read, items)) if read == store.read => {
                    store.owed += 1;
                    let (has_marker, has_hole) = self.hub.past.take_in(items);
                    if has_hole {
                        self.hub.resumers.fail_stored(Why::Outage);
                    }
                    self.laps.is_dry = false;
                    self.hub.resumers.note_news();
                    if has_marker {
                        self.ask_those_who_wait(now, Session::on_stored);
                    }
                }
                Some(FromReader::Failed(read, why)) if read == store.read => {
                    self.hub.past.end();
                    self.hub.resumers.fail_stored(why);
                    self.ask_those_who_wait(now, Session::on_stored_failed);
                }
                Some(FromReader::Items(..) | FromReader::Failed(..)) => {}
                None => break,
            }
        }
        self.order(&mut store, now);
        self.store = Some(store);
    }

    /// Whether there is more to take at once.
    pub(super) fn has_stored(&self) -> bool {
        self.store
            .as_ref()
            .is_some_and(|store| store.end.waiting() > 0)
    }

    /// When it is looked whether the stream is still needed, on the loop's clock.
    pub(super) fn stored_due(&self) -> Option<Duration> {
        let store = self.store.as_ref()?;
        self.hub.past.is_read().then(|| store.needed_at + IDLE_MAX)
    }

    fn ask_those_who_wait(
        &mut self,
        now: Now,
        how: fn(&mut Session, u32, &mut crate::session::hub::Context<'_>),
    ) {
        for waiter in self.hub.past.take_waiters() {
            self.resume(waiter, now, how);
        }
    }

    fn order(&mut self, store: &mut Store, now: Now) {
        if let Some(from_unix_ms) = self.hub.past.to_read_from() {
            store.read = Read(store.read.0.wrapping_add(1));
            store.owed = 0;
            let begin = ToReader::Begin {
                read: store.read,
                from_unix_ms,
            };
            if store.end.tell(begin) {
                self.hub.past.begin(from_unix_ms);
            } else {
                // It takes no commands: it hangs, until its own deadline.
                self.ask_those_who_wait(now, Session::on_stored_failed);
            }
            store.needed_at = now.clock;
        }
        if !self.hub.past.is_read() {
            return;
        }
        let earliest = self.hub.resumers.earliest_stored();
        if earliest.is_some() || self.hub.past.is_waited_for() {
            store.needed_at = now.clock;
        } else if now.clock >= store.needed_at + IDLE_MAX {
            self.hub.past.end();
            store.end.tell(ToReader::End(store.read));
            return;
        }
        // Where nobody reads, all may go but what the next who comes may want: the newest.
        let room = self.hub.past.make_room(earliest.unwrap_or(STORED_END));
        while room && store.owed > 0 && store.end.tell(ToReader::More(store.read)) {
            store.owed -= 1;
        }
        debug_assert!(store.owed <= BATCHES_AHEAD);
        let gone = |seq: Seq| !self.hub.past.holds(seq);
        let resumers = &mut self.hub.resumers;
        resumers.fail_stored_if(Why::Expired, gone);
    }
}
