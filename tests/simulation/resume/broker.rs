//! The broker: everything that was published, by number, and the queue of a process.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use blackhole::routing::amqp_binding::AmqpBinding;
use fastrand::Rng;

use super::model::{PUBLISHERS, Whose};
use crate::model::routes;

/// Longest way of an event from its publisher to a queue.
const DELAY_MAX: Duration = Duration::from_millis(200);

/// What was published.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) publisher: usize,
    pub(super) exchange: &'static str,
    pub(super) routing_key: String,
    pub(super) body: Vec<u8>,
    pub(super) whose: Whose,
    /// When.
    pub(super) at: Duration,
    /// As the cursor of its frame must name it.
    pub(super) id: String,
}

/// Everything that was published; the first has number 1.
#[derive(Debug, Default)]
pub(super) struct Log(Vec<Arc<Published>>);

impl Log {
    /// Adds one; returns its number.
    pub(super) fn add(&mut self, published: Published) -> u64 {
        self.0.push(Arc::new(published));
        self.latest()
    }

    /// The number of the latest; 0 when there is none.
    pub(super) fn latest(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn get(&self, number: u64) -> &Arc<Published> {
        &self.0[number as usize - 1]
    }

    /// The number of the last that was published before this moment.
    pub(super) fn before(&self, moment: Duration) -> u64 {
        self.0.partition_point(|one| one.at < moment) as u64
    }
}

/// The queue of a process, and what is on its way there.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) bindings: BTreeSet<AmqpBinding>,
    lanes: [VecDeque<(Duration, u64)>; PUBLISHERS],
    waiting: VecDeque<u64>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            bindings: BTreeSet::new(),
            lanes: std::array::from_fn(|_| VecDeque::new()),
            waiting: VecDeque::new(),
        }
    }

    /// Takes an event if a binding does.
    pub(super) fn route(&mut self, number: u64, published: &Published, rng: &mut Rng) {
        let mut bindings = self.bindings.iter();
        if bindings.any(|one| {
            *one.exchange == *published.exchange && routes(&one.key, &published.routing_key)
        }) {
            let lane = &mut self.lanes[published.publisher];
            let delay = rng.u64(..DELAY_MAX.as_millis() as u64);
            let arrives = published.at + Duration::from_millis(delay);
            let behind = lane.back().map_or(Duration::ZERO, |(arrives, _)| *arrives);
            lane.push_back((arrives.max(behind), number));
        }
    }

    /// What has arrived by now joins the queue; the publishers in any order.
    pub(super) fn arrive(&mut self, now: Duration, rng: &mut Rng) {
        let mut lanes: Vec<usize> = (0..PUBLISHERS).collect();
        rng.shuffle(&mut lanes);
        for lane in lanes {
            let arrived = self.lanes[lane].partition_point(|(at, _)| *at <= now);
            let numbers = self.lanes[lane].drain(..arrived).map(|(_, number)| number);
            self.waiting.extend(numbers);
        }
    }

    /// The next delivery.
    pub(super) fn deliver(&mut self) -> Option<u64> {
        self.waiting.pop_front()
    }

    /// So many of the oldest are dropped, as at `x-max-length`. Returns whether there were any.
    pub(super) fn overflow(&mut self, count: usize) -> bool {
        let count = count.min(self.waiting.len());
        self.waiting.drain(..count).count() > 0
    }

    /// Nothing waits, and nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.lanes.iter().all(VecDeque::is_empty)
    }
}
