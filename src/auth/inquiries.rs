//! The questions that nobody has answered yet, and who waits for each.
//!
//! Invariants:
//!
//! - A question that is asked again before its answer is there is put once.
//! - Questions are put in turns between the networks that they come from, so that a network that asks much waits for its
//!   own questions. Questions of live sessions whose answers run out have every second turn.
//! - Bounds: [`VERIFY_QUESTIONS_MAX`] and [`PLATFORM_QUESTIONS_MAX`] questions that have not been put, of one network half
//!   of them; [`ASKERS_MAX`] who wait. Beyond them a question is not taken, and whoever asks is told that nobody can say.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::digest::Digest;
use super::question::{Lane, Question};
use crate::limits::{ASKERS_MAX, PLATFORM_QUESTIONS_MAX, VERIFY_QUESTIONS_MAX};

/// Who asks: a connection, and the network that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The connection, as a word.
    pub connection: usize,
    /// Its network: an IPv4 address, or the first half of an IPv6 one.
    pub network: IpAddr,
}

/// The questions without an answer.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    /// Who waits, by question; nobody, where the answer of a live session is asked for again.
    pending: HashMap<Digest, Vec<usize>>,
    askers: usize,
    verify: Turns,
    platform: Turns,
    /// Questions that were not taken because of a bound.
    pub(super) refused: u64,
}

/// The questions of one lane that have not been put, in turns.
#[derive(Debug, Default)]
struct Turns {
    of_network: HashMap<IpAddr, VecDeque<Question>>,
    turns: VecDeque<IpAddr>,
    again: VecDeque<Question>,
    is_again_next: bool,
    len: usize,
}

impl Turns {
    fn has_room_for(&self, network: &IpAddr, max: usize) -> bool {
        let of_network = self.of_network.get(network).map_or(0, VecDeque::len);
        self.len < max && of_network < max / 2
    }

    fn push(&mut self, network: IpAddr, question: Question) {
        self.len += 1;
        match self.of_network.entry(network) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push_back(question),
            Entry::Vacant(empty) => {
                empty.insert(VecDeque::from([question]));
                self.turns.push_back(network);
            }
        }
    }

    fn pop_new(&mut self) -> Option<Question> {
        let network = self.turns.pop_front()?;
        let Entry::Occupied(mut waiting) = self.of_network.entry(network) else {
            return None;
        };
        let question = waiting.get_mut().pop_front();
        if waiting.get().is_empty() {
            waiting.remove();
        } else {
            self.turns.push_back(network);
        }
        self.len -= usize::from(question.is_some());
        question
    }

    fn pop(&mut self) -> Option<Question> {
        self.is_again_next = !self.is_again_next;
        if self.is_again_next {
            self.again.pop_front().or_else(|| self.pop_new())
        } else {
            self.pop_new().or_else(|| self.again.pop_front())
        }
    }
}

impl Inquiries {
    fn lane(&mut self, lane: Lane) -> &mut Turns {
        match lane {
            Lane::Verify => &mut self.verify,
            Lane::Platform => &mut self.platform,
        }
    }

    /// Lets `asker` wait for the answer to a question, which `question` makes if it has not been asked yet. False: a bound
    /// is met. O(1); a connection that waits for several questions is in several lists.
    pub(super) fn ask(
        &mut self,
        digest: Digest,
        asker: Asker,
        question: impl FnOnce() -> Question,
    ) -> bool {
        let is_new = !self.pending.contains_key(&digest);
        if self.askers >= ASKERS_MAX {
            self.refused += 1;
            return false;
        }
        if is_new {
            let question = question();
            let lane = question.lane();
            let max = match lane {
                Lane::Verify => VERIFY_QUESTIONS_MAX,
                Lane::Platform => PLATFORM_QUESTIONS_MAX,
            };
            let turns = self.lane(lane);
            if !turns.has_room_for(&asker.network, max) {
                self.refused += 1;
                return false;
            }
            turns.push(asker.network, question);
        }
        let waiting = self.pending.entry(digest).or_default();
        if waiting.last() != Some(&asker.connection) {
            waiting.push(asker.connection);
            self.askers += 1;
        }
        true
    }

    /// Lets those who wait for one question wait for another instead, which shares one turn with all others of its kind.
    /// False: a bound is met, and they wait as before.
    pub(super) fn move_to(
        &mut self,
        from: &Digest,
        to: Digest,
        question: impl FnOnce() -> Question,
    ) -> bool {
        if !self.pending.contains_key(&to) {
            let question = question();
            let turns = self.lane(question.lane());
            let shared = IpAddr::from([0; 4]);
            if !turns.has_room_for(&shared, PLATFORM_QUESTIONS_MAX) {
                self.refused += 1;
                return false;
            }
            turns.push(shared, question);
        }
        let waited = self.pending.remove(from).unwrap_or_default();
        self.pending.entry(to).or_default().extend(waited);
        true
    }

    /// Asks again, for live sessions; nobody waits. At most one question for each answer that is kept.
    pub(super) fn ask_again(&mut self, digest: Digest, question: Question) {
        if let Entry::Vacant(nobody) = self.pending.entry(digest) {
            nobody.insert(Vec::new());
            self.lane(question.lane()).again.push_back(question);
        }
    }

    /// The next question to be put to a lane.
    pub(super) fn next(&mut self, lane: Lane) -> Option<Question> {
        self.lane(lane).pop()
    }

    /// Takes back a question that could not be put; it is the next one.
    pub(super) fn put_back(&mut self, question: Question) {
        let turns = self.lane(question.lane());
        turns.again.push_front(question);
        turns.is_again_next = false;
    }

    /// Who waited for the answer that is there now; they are to look again.
    pub(super) fn answered(&mut self, digest: &Digest) -> Vec<usize> {
        let waited = self.pending.remove(digest).unwrap_or_default();
        self.askers -= waited.len();
        waited
    }

    /// Questions without an answer, and those who wait for one.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.pending.len(), self.askers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(connection: usize, network: u8) -> Asker {
        Asker {
            connection,
            network: IpAddr::from([127, 0, 0, network]),
        }
    }

    fn question(kid: &str) -> Question {
        Question::Key { kid: kid.into() }
    }

    fn ask(inquiries: &mut Inquiries, kid: &str, asker: Asker) -> bool {
        inquiries.ask(Digest::of_key(kid), asker, || question(kid))
    }

    fn next(inquiries: &mut Inquiries) -> Option<String> {
        match inquiries.next(Lane::Platform)? {
            Question::Key { kid } => Some(kid.into()),
            Question::Verify { .. } | Question::Account { .. } => None,
        }
    }

    #[test]
    fn equal_questions_are_put_once_and_all_who_asked_are_told() {
        let mut inquiries = Inquiries::default();
        for connection in [1, 1, 2, 3] {
            assert!(ask(&mut inquiries, "a", asker(connection, 1)));
        }
        assert_eq!(inquiries.counts(), (1, 3));
        assert_eq!(next(&mut inquiries).as_deref(), Some("a"));
        assert_eq!(next(&mut inquiries), None);
        assert!(ask(&mut inquiries, "a", asker(4, 1)), "it is under way");
        assert_eq!(next(&mut inquiries), None);
        assert_eq!(inquiries.answered(&Digest::of_key("a")), [1, 2, 3, 4]);
        assert_eq!(inquiries.counts(), (0, 0));
        assert_eq!(inquiries.answered(&Digest::of_key("a")), [0; 0]);
    }

    #[test]
    fn a_network_that_asks_much_waits_for_its_own_questions_and_leaves_room() {
        let mut inquiries = Inquiries::default();
        let mut taken = 0;
        while ask(&mut inquiries, &format!("flood{taken}"), asker(taken, 1)) {
            taken += 1;
        }
        assert_eq!((taken, inquiries.refused), (PLATFORM_QUESTIONS_MAX / 2, 1));
        assert!(ask(&mut inquiries, "other", asker(1, 2)));
        inquiries.ask_again(Digest::of_key("live"), question("live"));
        inquiries.ask_again(Digest::of_key("live"), question("live"));
        let first: Vec<_> = (0..3).filter_map(|_| next(&mut inquiries)).collect();
        assert_eq!(first, ["live", "flood0", "other"]);
        let mut rest = 0;
        while next(&mut inquiries).is_some() {
            rest += 1;
        }
        assert_eq!(rest, taken - 1);
    }
}
