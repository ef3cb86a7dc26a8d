//! Which deliveries come again after a reconnect (PROTOCOL 10, "Broker link"). Pure: no socket, clock, thread or log.
//!
//! A queue gives its messages out in one order. Count them: d(1), d(2), … We have handled d(1) to d(N), that is handed
//! them on or dropped them as undecodable, and sent acks for d(1) to d(A) at most. How many of these acks arrived
//! before the connection broke nobody can say. So after a reconnect the broker begins with some d(j + 1), j <= A: it
//! sends again what was not acknowledged, in the old order and with the redelivered flag; then what it had sent and we
//! never received, with the flag too; then what is new, without it.
//!
//! The starts j + 1 that are still possible are the *candidates*: all places up to A + 1 from which the ids that we
//! kept agree with what has come. A delivery is one that came again while the largest candidate still lies among what
//! was handled.
//!
//! Invariants:
//! - The newest delivery is not acknowledged until a later one was handled, or the broker has surely had all acks
//!   ([`Redelivery::settled`]). So A < N, d(N) always comes again, and where what came again ends is certain but for
//!   equal publishes side by side: then the one with the fewest deliveries that came again is taken, which may be a
//!   double and is never a loss.
//! - What does not fit (nothing comes again, or something else does) is [`Verdict::Broken`]: the queue has not kept
//!   what it had. Everything is then handed on, and the loop is to be told.
//! - At most `kept_max` ids are kept, as many as a broker has unacknowledged deliveries under way. A delivery costs
//!   O(candidates): two passes over them for the first, and next to nothing once ids have told them apart.

use std::collections::VecDeque;

use crate::event::EventId;

/// What a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not handled before.
    New,
    /// It was handled before, and is to be acknowledged only.
    Again,
    /// It is to be handed on; and the queue has lost something, or its broker does not keep the order.
    Broken,
}

#[derive(Debug)]
enum Phase {
    /// Nothing that was handled comes any more. `first`: the number of this connection's first delivery.
    New { first: u64 },
    /// Deliveries come again. `candidates`: the numbers that this connection's first delivery may have, rising, not
    /// empty. `is_told`: the loop knows already that the queue has lost something.
    Again { candidates: Vec<u64>, is_told: bool },
}

/// What is known of one queue, on one connection after another.
#[derive(Debug)]
pub(super) struct Redelivery {
    kept_max: usize,
    /// The ids of d(N - len + 1) to d(N).
    handled: VecDeque<EventId>,
    /// N.
    newest: u64,
    /// A.
    acked: u64,
    /// Deliveries taken on this connection.
    taken: u64,
    phase: Phase,
}

impl Redelivery {
    /// Of a new queue, of which a broker has at most `kept_max` unacknowledged deliveries under way.
    pub(super) fn new(kept_max: usize) -> Self {
        Self {
            kept_max,
            handled: VecDeque::new(),
            newest: 0,
            acked: 0,
            taken: 0,
            phase: Phase::New { first: 1 },
        }
    }

    /// Deliveries that a queue that has lost nothing must have, because they were handled and never acknowledged.
    pub(super) fn expected(&self) -> u64 {
        self.newest - self.acked
    }

    /// Another connection to the same queue begins. `is_told`: the loop knows already that the queue has lost
    /// something. O(kept).
    pub(super) fn begin(&mut self, is_told: bool) {
        self.taken = 0;
        self.phase = if self.handled.is_empty() {
            Phase::New {
                first: self.newest + 1,
            }
        } else {
            let oldest = self.newest + 1 - self.handled.len() as u64;
            Phase::Again {
                candidates: (oldest..=self.acked + 1).collect(),
                is_told,
            }
        };
    }

    /// Takes the next delivery of this connection. One that is not [`Verdict::Again`] must be followed by
    /// [`Redelivery::handled`].
    pub(super) fn take(&mut self, id: EventId, is_flagged: bool) -> Verdict {
        let ahead = self.taken;
        self.taken += 1;
        let Phase::Again {
            candidates,
            is_told,
        } = &mut self.phase
        else {
            return Verdict::New;
        };
        let is_told = *is_told;
        let oldest = self.newest + 1 - self.handled.len() as u64;
        if is_flagged {
            candidates.retain(|first| {
                let at = usize::try_from(first + ahead - oldest).unwrap_or(usize::MAX);
                self.handled.get(at).is_none_or(|handled| *handled == id)
            });
        }
        match candidates.last() {
            Some(&first) if first + ahead > self.newest => {
                self.phase = Phase::New { first };
                Verdict::New
            }
            Some(_) if is_flagged => Verdict::Again,
            _ => {
                self.phase = Phase::New {
                    first: (self.newest + 1).saturating_sub(ahead),
                };
                self.forget_handled();
                if is_told {
                    Verdict::New
                } else {
                    Verdict::Broken
                }
            }
        }
    }

    /// The delivery that was taken last was handed on, or dropped as undecodable.
    pub(super) fn handled(&mut self, id: EventId) {
        self.newest += 1;
        self.handled.push_back(id);
        if self.handled.len() > self.kept_max {
            self.handled.pop_front();
        }
    }

    /// Deliveries taken on this connection.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// An ack was sent for the first `count` deliveries of this connection.
    pub(super) fn acked(&mut self, count: u64) {
        let first = match &self.phase {
            Phase::New { first } => *first,
            Phase::Again { candidates, .. } => candidates.last().copied().unwrap_or_default(),
        };
        let last = (first + count.min(self.taken)).saturating_sub(1);
        self.acked = self.acked.max(last).min(self.newest);
    }

    /// The broker has had acks for all deliveries that were taken: none of them comes again.
    pub(super) fn settled(&mut self) {
        self.forget_handled();
        self.phase = self.all_new();
    }

    /// Whether deliveries that must come again have not come yet.
    pub(super) fn is_waiting(&self) -> bool {
        match &self.phase {
            Phase::New { .. } => false,
            Phase::Again { candidates, .. } => candidates
                .last()
                .is_none_or(|first| first + self.taken <= self.newest),
        }
    }

    /// What must come again does not come. Returns whether the loop is to be told.
    pub(super) fn give_up(&mut self) -> bool {
        if !self.is_waiting() {
            return false;
        }
        let all_new = self.all_new();
        let before = std::mem::replace(&mut self.phase, all_new);
        self.forget_handled();
        matches!(before, Phase::Again { is_told: false, .. })
    }

    /// What was handled and has not come again by now is lost, and comes no more: a later event that is published alike is
    /// another.
    fn forget_handled(&mut self) {
        self.acked = self.newest;
        self.handled.clear();
    }

    /// The next delivery is d(N + 1).
    fn all_new(&self) -> Phase {
        Phase::New {
            first: (self.newest + 1).saturating_sub(self.taken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: usize) -> EventId {
        EventId::of("callevt", "key", &number.to_ne_bytes())
    }

    /// A classic queue, its connection, and a consumer that works as ours does.
    struct Scene {
        /// What was published, by its content.
        published: Vec<usize>,
        /// The broker's `j`: so many are acknowledged.
        acked: usize,
        /// So many were ever sent, and are flagged when they are sent again.
        sent: usize,
        prefetch: usize,
        redelivery: Redelivery,
        /// Indices handed on, in their order.
        handed_on: Vec<usize>,
        broken: usize,
    }

    impl Scene {
        fn new(prefetch: usize) -> Self {
            Self {
                published: Vec::new(),
                acked: 0,
                sent: 0,
                prefetch,
                redelivery: Redelivery::new(prefetch),
                handed_on: Vec::new(),
                broken: 0,
            }
        }

        /// Connections that are not cut, until only the newest is not acknowledged.
        fn finish(&mut self) {
            loop {
                self.connect(usize::MAX / 2, 100, false);
                if self.acked + 1 >= self.published.len() {
                    break;
                }
            }
        }

        /// One connection: the broker sends what it may, of which we receive `received`; of the acks that we send
        /// `arrives` in 100 arrive. `settles`: the consumer is idle at the end, and the connection whole.
        fn connect(&mut self, received: usize, arrives: usize, settles: bool) {
            let start = self.acked;
            self.redelivery.begin(false);
            let flagged = self.sent;
            let (mut arrived, mut taken) = (0, 0);
            for index in start..self.published.len().min(start + received) {
                // The window: acks that have arrived make room.
                if index >= start + arrived + self.prefetch {
                    break;
                }
                taken += 1;
                self.sent = self.sent.max(index + 1);
                let its_id = id(self.published[index]);
                let verdict = self.redelivery.take(its_id, index < flagged);
                if verdict != Verdict::Again {
                    self.redelivery.handled(its_id);
                    self.handed_on.push(index);
                }
                self.broken += usize::from(verdict == Verdict::Broken);
                self.redelivery.acked(taken as u64 - 1);
                if (index * 37 + received) % 100 < arrives {
                    arrived = taken - 1;
                }
            }
            self.acked = self.acked.max(start + arrived);
            if settles && start + taken == self.published.len() && !self.redelivery.is_waiting() {
                self.redelivery.acked(taken as u64);
                self.redelivery.settled();
                self.acked = start + taken;
            } else {
                // What the broker sent and we never received.
                let window = self.published.len().min(self.acked + self.prefetch);
                self.sent = self.sent.max(window);
            }
        }
    }

    #[test]
    fn what_was_lost_with_the_broker_does_not_swallow_what_is_published_alike_later() {
        let mut redelivery = Redelivery::new(9);
        let take_new = |redelivery: &mut Redelivery, number| {
            assert_eq!(redelivery.take(id(number), false), Verdict::New);
            redelivery.handled(id(number));
        };
        redelivery.begin(false);
        take_new(&mut redelivery, 0);
        take_new(&mut redelivery, 1);
        redelivery.acked(1);
        // The broker restarts without what it had, which is told.
        redelivery.begin(true);
        take_new(&mut redelivery, 0);
        // A cut. The second was sent, and never received.
        redelivery.begin(false);
        assert_eq!(redelivery.take(id(0), true), Verdict::Again);
        assert_eq!(redelivery.take(id(1), true), Verdict::New);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2048 } else { 100_000 }))]

        /// Cuts anywhere, in the middle of what comes again too, acks lost anywhere: each event is handed on once, in
        /// order, and nothing is told.
        #[test]
        fn whatever_is_cut_every_event_is_handed_on_once(
            prefetch in 2..9_usize,
            steps in proptest::collection::vec((0..8_usize, 0..12_usize, 0..101_usize, any::<bool>()), 0..40),
        ) {
            let mut scene = Scene::new(prefetch);
            for (more, received, arrives, settles) in steps {
                let next = scene.published.len();
                scene.published.extend(next..next + more);
                scene.connect(received, arrives, settles);
            }
            scene.finish();
            prop_assert_eq!(scene.broken, 0);
            let all: Vec<_> = (0..scene.published.len()).collect();
            prop_assert_eq!(scene.handed_on, all);
        }

        /// The same where many publishes are equal: what was published is a subsequence of what is handed on, so
        /// nothing is lost; or it was told that something may be.
        #[test]
        fn equal_publishes_may_come_twice_and_are_never_lost_untold(
            prefetch in 2..6_usize,
            steps in proptest::collection::vec((proptest::collection::vec(0..2_usize, 0..5), 0..8_usize, 0..101_usize, any::<bool>()), 0..40),
        ) {
            let mut scene = Scene::new(prefetch);
            for (more, received, arrives, settles) in steps {
                scene.published.extend(more);
                scene.connect(received, arrives, settles);
            }
            scene.finish();
            let got: Vec<_> = scene.handed_on.iter().map(|index| scene.published[*index]).collect();
            let mut rest = got.iter();
            let is_whole = scene.published.iter().all(|wanted| rest.any(|one| one == wanted));
            prop_assert!(is_whole || scene.broken > 0, "{:?} of {:?}", got, scene.published);
        }

        /// A broker that sends anything with any flag: no panic, and only what has the id of something handled is
        /// dropped.
        #[test]
        fn garbage_is_handed_on(
            kept in 1..5_usize,
            steps in proptest::collection::vec((0..6_u8, 0..4_usize, any::<bool>()), 0..60),
        ) {
            let mut redelivery = Redelivery::new(kept);
            let mut handled = Vec::new();
            for (step, number, is_flagged) in steps {
                match step {
                    0 => redelivery.begin(is_flagged),
                    1 => redelivery.acked(number as u64),
                    2 if !redelivery.is_waiting() => redelivery.settled(),
                    2 => drop(redelivery.give_up()),
                    _ => match redelivery.take(id(number), is_flagged) {
                        Verdict::Again => prop_assert!(is_flagged && handled.contains(&number)),
                        Verdict::New | Verdict::Broken => {
                            redelivery.handled(id(number));
                            handled.push(number);
                        }
                    },
                }
                prop_assert!(redelivery.handled.len() <= kept);
            }
        }
    }

    /// Three handled, two acked, cut.
    fn after_a_cut() -> Redelivery {
        let mut redelivery = Redelivery::new(8);
        for number in 1..=3 {
            assert_eq!(redelivery.take(id(number), false), Verdict::New);
            redelivery.handled(id(number));
        }
        redelivery.acked(2);
        assert_eq!(redelivery.expected(), 1);
        redelivery.begin(false);
        redelivery
    }

    #[test]
    fn what_comes_again_is_recognised_wherever_it_begins() {
        for begins in 1..=3 {
            let mut redelivery = after_a_cut();
            for number in begins..=3 {
                assert!(redelivery.is_waiting());
                assert_eq!(redelivery.take(id(number), true), Verdict::Again);
            }
            // What was sent and never received has the flag too.
            assert_eq!(redelivery.take(id(4), true), Verdict::New);
            redelivery.handled(id(4));
            assert_eq!(redelivery.take(id(4), false), Verdict::New, "an equal one");
            assert!(!redelivery.is_waiting());
        }
    }

    #[test]
    fn a_queue_that_has_not_kept_what_it_had_is_found_out() {
        let rows: [(&[(usize, bool)], usize); 4] = [
            // Nothing comes again.
            (&[(4, false)], 0),
            // The one that must is missing.
            (&[(4, true)], 0),
            (&[(2, true), (4, true)], 1),
            // It comes without its flag.
            (&[(2, true), (3, false)], 1),
        ];
        for (came, broken_at) in rows {
            let mut redelivery = after_a_cut();
            for (at, (number, is_flagged)) in came.iter().enumerate() {
                let expected = if at == broken_at {
                    Verdict::Broken
                } else {
                    Verdict::Again
                };
                assert_eq!(redelivery.take(id(*number), *is_flagged), expected);
            }
            redelivery.handled(id(9));
            assert_eq!(redelivery.take(id(3), true), Verdict::New, "told once");
        }
        // Where it was told before, it is not told again.
        let mut redelivery = after_a_cut();
        redelivery.begin(true);
        assert_eq!(redelivery.take(id(7), true), Verdict::New);
        let mut redelivery = after_a_cut();
        assert!(redelivery.give_up() && !redelivery.give_up());
    }

    #[test]
    fn equal_publishes_are_told_apart_by_their_number_and_only_a_doubtful_one_comes_twice() {
        let mut redelivery = Redelivery::new(8);
        for _ in 0..3 {
            assert_eq!(redelivery.take(id(1), false), Verdict::New);
            redelivery.handled(id(1));
        }
        redelivery.acked(2);
        redelivery.begin(false);
        assert_eq!(redelivery.take(id(1), true), Verdict::Again);
        assert_eq!(
            redelivery.take(id(1), true),
            Verdict::New,
            "a double or not"
        );
    }
}
