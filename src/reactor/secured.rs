//! What the loop keeps of the connections of the TLS port, by their slots: nothing of the others, so that a process without
//! that port pays one word.
//!
//! ```text
//! Clear --PROXY header taken, if one may come; a record of a handshake begins--> Handshake --> Live
//!   +--plain HTTP: told so once, and no longer kept here
//! Handshake: Listening --bytes--> Waiting --a thread takes it--> Away --more is to come--> Listening
//! ```
//!
//! Invariants: a handshake is at one place, here or at a thread, and nothing is read while it waits for a thread or is away.
//! Handshakes wait in turns between the networks that they come from, so that a network that begins many waits for its own.
//! A live connection keeps its keys and, of what was read, only what the session has not taken: a record in part, or the rest
//! of one. [`Secured::handshake_bytes`] is the sum over all handshakes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;

use super::unfinished::Unfinished;
use crate::session::id::ConnId;
use crate::tls::{Alert, Exhausted, Handshake, Records, Version};

/// The connections of the TLS port.
#[derive(Default)]
pub(super) struct Secured {
    slots: Vec<Option<Box<Secure>>>,
    counts: Counts,
    /// New ones that wait for a thread.
    to_begin: WaitingHandshakes,
    /// Those under way that wait for one.
    to_go_on: WaitingHandshakes,
    /// All handshakes, for the one that goes first when they hold too much.
    unfinished: Unfinished,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    live: usize,
    handshakes: usize,
    handshake_bytes: usize,
}

/// How far a connection is.
pub(super) enum Secure {
    /// No byte of TLS has come.
    Clear,
    /// Its handshake is under way.
    Handshake(Shake),
    /// Its handshake is done.
    Live(Live),
}

/// Where a handshake is.
pub(super) enum Shake {
    /// Its peer is to send more.
    Listening(Handshake),
    /// Bytes of its peer wait for a thread. `None`: a new one.
    Waiting(Option<Handshake>, Vec<u8>),
    /// A thread has it, of so many bytes.
    Away(usize),
}

impl Shake {
    fn bytes(&self) -> usize {
        match self {
            Self::Listening(handshake) => handshake.heap_bytes(),
            Self::Waiting(handshake, input) => {
                handshake.as_ref().map_or(0, Handshake::heap_bytes) + input.len()
            }
            Self::Away(bytes) => *bytes,
        }
    }
}

/// A connection whose handshake is done.
pub(super) struct Live {
    pub(super) records: Records,
    kept: Option<Box<Kept>>,
    /// We have said that nothing follows (close_notify).
    has_ended: bool,
}

/// What was read and not taken.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// First the plain bytes of a record of which the session took a part, then records.
    pub(super) bytes: Vec<u8>,
    /// How many are plain.
    pub(super) plain: usize,
}

impl Live {
    /// `rest`: records that came behind the handshake.
    pub(super) fn new(records: Records, rest: Vec<u8>) -> Self {
        let kept = Kept {
            bytes: rest,
            plain: 0,
        };
        Self {
            records,
            kept: (!kept.bytes.is_empty()).then(|| Box::new(kept)),
            has_ended: false,
        }
    }

    /// How many bytes are kept.
    pub(super) fn kept_len(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.bytes.len())
    }

    /// Takes what is kept.
    pub(super) fn take_kept(&mut self) -> Kept {
        self.kept.take().map_or_else(Kept::default, |kept| *kept)
    }

    /// Keeps bytes, of which the first `plain` are plain.
    pub(super) fn keep(&mut self, bytes: &[u8], plain: usize) {
        self.kept = (!bytes.is_empty()).then(|| {
            Box::new(Kept {
                bytes: bytes.to_vec(),
                plain,
            })
        });
    }

    /// Whether the next read needs nothing of the socket, and otherwise how many bytes are missing of the record that is
    /// kept in part. A record that is wrong counts as whole: whoever takes it finds out.
    pub(super) fn missing(&self) -> Option<usize> {
        let kept = self.kept.as_ref()?;
        if kept.plain > 0 {
            return Some(0);
        }
        match Records::record_len(&kept.bytes) {
            Ok(Some(length)) => Some(length.saturating_sub(kept.bytes.len())),
            Ok(None) => None,
            Err(_) => Some(0),
        }
    }

    /// Appends to `out` the records of `plain`. `is_last`: nothing follows.
    ///
    /// # Errors
    /// The keys are used up; nothing was appended.
    pub(super) fn seal<'a>(
        &mut self,
        plain: impl Iterator<Item = &'a [u8]>,
        is_last: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Exhausted> {
        if self.has_ended {
            return Ok(());
        }
        self.records.seal(plain, out)?;
        if is_last {
            self.end(Alert::CLOSE_NOTIFY, out);
        }
        Ok(())
    }

    /// Appends the alert behind which nothing follows, unless one has gone already.
    pub(super) fn end(&mut self, alert: Alert, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.records.seal_alert(alert, out);
        }
    }
}

impl Secured {
    /// Takes a connection in; its slot must be free. O(1) amortised.
    pub(super) fn insert(&mut self, slot: u32) {
        let place = slot as usize;
        if self.slots.len() <= place {
            self.slots.resize_with(place + 1, || None);
        }
        if let Some(empty) = self.slots.get_mut(place) {
            *empty = Some(Box::new(Secure::Clear));
            self.counts.handshakes += 1;
        }
    }

    /// The connection in a slot; `None`: it is none of the TLS port.
    pub(super) fn get(&self, slot: u32) -> Option<&Secure> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// The version of TLS of the live connection in a slot.
    pub(super) fn version(&self, slot: u32) -> Option<Version> {
        match self.get(slot)? {
            Secure::Live(live) => Some(live.records.version()),
            Secure::Clear | Secure::Handshake(_) => None,
        }
    }

    /// The live connection in a slot.
    pub(super) fn live_mut(&mut self, slot: u32) -> Option<&mut Live> {
        match self.slots.get_mut(slot as usize)?.as_deref_mut()? {
            Secure::Live(live) => Some(live),
            Secure::Clear | Secure::Handshake(_) => None,
        }
    }

    /// Whether nothing is to be read there now.
    pub(super) fn is_busy(&self, slot: u32) -> bool {
        matches!(
            self.get(slot),
            Some(Secure::Handshake(Shake::Waiting(..) | Shake::Away(_)))
        )
    }

    /// Takes a connection out, whose handshake may wait under `network`.
    pub(super) fn remove(&mut self, id: ConnId, network: IpAddr) {
        let place = self.slots.get_mut(id.slot as usize);
        if let Some(secure) = place.and_then(Option::take) {
            self.uncount(&secure);
            if let Secure::Handshake(_) = *secure {
                self.to_begin.remove(network, id);
                self.to_go_on.remove(network, id);
                self.unfinished.remove(network, id);
            }
        }
    }

    fn uncount(&mut self, secure: &Secure) {
        match secure {
            Secure::Clear => self.counts.handshakes -= 1,
            Secure::Handshake(shake) => {
                self.counts.handshakes -= 1;
                self.counts.handshake_bytes -= shake.bytes();
            }
            Secure::Live(_) => self.counts.live -= 1,
        }
    }

    fn put(&mut self, slot: u32, secure: Secure) {
        match &secure {
            Secure::Clear => self.counts.handshakes += 1,
            Secure::Handshake(shake) => {
                self.counts.handshakes += 1;
                self.counts.handshake_bytes += shake.bytes();
            }
            Secure::Live(_) => self.counts.live += 1,
        }
        if let Some(Some(place)) = self.slots.get_mut(slot as usize) {
            **place = secure;
        }
    }

    fn take(&mut self, slot: u32) -> Option<Secure> {
        let place = self.slots.get_mut(slot as usize)?.as_deref_mut()?;
        let secure = std::mem::replace(place, Secure::Clear);
        self.uncount(&secure);
        Some(secure)
    }

    /// Lets bytes of a peer wait for a thread. Not for a connection that is live.
    pub(super) fn wait(&mut self, id: ConnId, network: IpAddr, input: Vec<u8>) {
        let shake = match self.take(id.slot) {
            Some(Secure::Clear) => {
                self.unfinished.insert(network, id);
                Shake::Waiting(None, input)
            }
            Some(Secure::Handshake(Shake::Listening(handshake))) => {
                Shake::Waiting(Some(handshake), input)
            }
            Some(other) => return self.put(id.slot, other),
            None => return,
        };
        let waiting = match &shake {
            Shake::Waiting(None, _) => &mut self.to_begin,
            _ => &mut self.to_go_on,
        };
        waiting.insert(network, id);
        self.put(id.slot, Secure::Handshake(shake));
    }

    /// Takes the handshake whose turn it is, with the bytes that wait for it; it is away then. `begins`: one that is new, or
    /// one that is under way. O(log n) in those that wait.
    pub(super) fn next_waiting(
        &mut self,
        begins: bool,
    ) -> Option<(ConnId, Option<Handshake>, Vec<u8>)> {
        let waiting = if begins {
            &mut self.to_begin
        } else {
            &mut self.to_go_on
        };
        let id = waiting.pop()?;
        match self.take(id.slot)? {
            Secure::Handshake(Shake::Waiting(handshake, input)) => {
                let bytes = handshake.as_ref().map_or(0, Handshake::heap_bytes) + input.len();
                self.put(id.slot, Secure::Handshake(Shake::Away(bytes)));
                Some((id, handshake, input))
            }
            other => {
                self.put(id.slot, other);
                None
            }
        }
    }

    /// A thread has had the handshake of a connection from `network`: this is what follows. False: the connection has no
    /// handshake there.
    pub(super) fn come_back(&mut self, id: ConnId, network: IpAddr, next: Secure) -> bool {
        let slot = id.slot;
        match self.take(slot) {
            Some(Secure::Handshake(Shake::Away(_))) => {
                if matches!(next, Secure::Live(_)) {
                    self.unfinished.remove(network, id);
                }
                self.put(slot, next);
                true
            }
            Some(other) => {
                self.put(slot, other);
                false
            }
            None => false,
        }
    }

    /// Whether a handshake waits there of which no thread has seen anything.
    pub(super) fn is_to_begin(&self, slot: u32) -> bool {
        matches!(
            self.get(slot),
            Some(Secure::Handshake(Shake::Waiting(None, _)))
        )
    }

    /// The oldest handshake of the network that has most.
    pub(super) fn first_to_go(&self) -> Option<ConnId> {
        self.unfinished.first_to_go()
    }

    /// How many handshakes wait for a thread.
    pub(super) fn waiting(&self) -> usize {
        self.to_begin.len() + self.to_go_on.len()
    }

    /// How many of them are new.
    pub(super) fn waiting_to_begin(&self) -> usize {
        self.to_begin.len()
    }

    /// How many are under way.
    pub(super) fn waiting_to_go_on(&self) -> usize {
        self.to_go_on.len()
    }

    /// How many connections are live.
    pub(super) fn live(&self) -> usize {
        self.counts.live
    }

    /// How many are not yet.
    pub(super) fn handshakes(&self) -> usize {
        self.counts.handshakes
    }

    /// What all handshakes hold.
    pub(super) fn handshake_bytes(&self) -> usize {
        self.counts.handshake_bytes
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.counts == Counts::default()
    }

    /// Gives the memory of the table back if it is empty.
    pub(super) fn shrink_if_empty(&mut self) {
        if self.is_empty() {
            self.slots = Vec::new();
        }
        self.unfinished.shrink();
    }
}

/// Those that wait for a thread: of the networks in turns, and of each the oldest first, because generations count
/// connections. All operations cost O(log n).
#[derive(Debug, Default)]
struct WaitingHandshakes {
    by_network: BTreeSet<(IpAddr, u32, u32)>,
    /// Whose turn was last.
    last: Option<IpAddr>,
}

impl WaitingHandshakes {
    fn insert(&mut self, network: IpAddr, id: ConnId) {
        self.by_network.insert((network, id.generation, id.slot));
    }

    fn remove(&mut self, network: IpAddr, id: ConnId) {
        self.by_network.remove(&(network, id.generation, id.slot));
    }

    fn len(&self) -> usize {
        self.by_network.len()
    }

    fn pop(&mut self) -> Option<ConnId> {
        let behind = self.last.and_then(|last| {
            let behind = Bound::Excluded((last, u32::MAX, u32::MAX));
            self.by_network.range((behind, Bound::Unbounded)).next()
        });
        let (network, generation, slot) = *behind.or_else(|| self.by_network.first())?;
        self.by_network.remove(&(network, generation, slot));
        self.last = Some(network);
        Some(ConnId { slot, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(generation: u32) -> ConnId {
        ConnId {
            slot: 1000 - generation,
            generation,
        }
    }

    #[test]
    fn networks_take_turns_and_each_sends_its_oldest_first() {
        let address = |last| IpAddr::from([203, 0, 113, last]);
        let mut waiting = WaitingHandshakes::default();
        let came = [1, 1, 1, 1, 2, 1, 3, 2];
        for (generation, last) in came.into_iter().enumerate() {
            waiting.insert(address(last), id(generation as u32));
        }
        waiting.remove(address(1), id(1));
        let gone: Vec<u32> = std::iter::from_fn(|| waiting.pop())
            .map(|id| id.generation)
            .collect();
        assert_eq!(gone, [0, 4, 6, 2, 7, 3, 5]);
    }

    #[test]
    fn what_comes_and_goes_is_counted_to_the_byte() {
        let network = IpAddr::from([203, 0, 113, 1]);
        let mut secured = Secured::default();
        for generation in 1..=4 {
            secured.insert(id(generation).slot);
        }
        secured.wait(id(1), network, vec![0; 10]);
        secured.wait(id(2), network, vec![0; 20]);
        secured.wait(id(3), network, vec![0; 40]);
        assert_eq!((secured.handshakes(), secured.waiting()), (4, 3));
        assert_eq!(secured.handshake_bytes(), 70);
        let (first, handshake, input) = secured.next_waiting(true).expect("three wait");
        assert_eq!((first, handshake.is_none(), input.len()), (id(1), true, 10));
        assert!(secured.is_busy(id(1).slot) && secured.is_busy(id(2).slot));
        assert!(!secured.is_busy(id(4).slot));
        assert_eq!(secured.handshake_bytes(), 70, "away, and not forgotten");
        secured.remove(id(2), network);
        assert_eq!((secured.waiting(), secured.handshake_bytes()), (1, 50));
        assert!(secured.come_back(id(1), network, Secure::Clear));
        assert!(
            !secured.come_back(id(1), network, Secure::Clear),
            "it is back already"
        );
        assert!(
            !secured.come_back(id(2), network, Secure::Clear),
            "it is gone"
        );
        for generation in [1, 3, 4, 4] {
            secured.remove(id(generation), network);
        }
        assert!(secured.is_empty() && secured.waiting() == 0);
    }
}
