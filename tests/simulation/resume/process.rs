//! A process: a reactor, the source's end of its hand-off, its queue at the broker, and its clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole::config::Config;
use blackhole::event::Event;
use blackhole::handoff::ask::{AskEnd, ask_channels};
use blackhole::handoff::{FromSource, LoopWaker, Return, SourceEnd, ToSource, handoff_bounded};
use blackhole::protocol::control::{Answer, ModuleChange, Question, ReplyTo, Request};
use blackhole::reactor::{Reactor, ReactorParts, Ready};
use blackhole::routing::amqp_binding::{AmqpBinding, Asked, Ticket};
use blackhole::routing::families::Families;
use blackhole::session::clock::Now;
use blackhole::session::hub::Hub;
use blackhole::session::limits::SessionLimits;
use blackhole::session::liveness::LivenessRules;
use fastrand::Rng;

use super::broker::{Log, Queue};
use support::scripted::Scripted;

/// The connection to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// Away, and its queue goes on taking what is published.
    Away,
    /// Away, and its queue is gone.
    Lost,
}

/// A time in which a process may have missed events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) from: Duration,
    /// The number of the last event that may be missing, once it is over.
    pub(super) last: Option<u64>,
}

pub(super) struct Process {
    /// Differs from that of every other process, also of those before it in its place.
    pub(super) incarnation: usize,
    pub(super) reactor: Reactor<Scripted>,
    source: SourceEnd,
    asker: AskEnd<Request, Answer>,
    epoch: Instant,
    /// The world's clock at its start.
    born: Duration,
    /// Unix milliseconds at the world's start, by its own clock.
    unix_start_ms: u64,
    pub(super) link: Link,
    /// Since when it is not [`Link::Up`].
    pub(super) away_since: Duration,
    pub(super) queue: Queue,
    wanted: BTreeMap<AmqpBinding, Ticket>,
    unconfirmed: Vec<AmqpBinding>,
    lost: BTreeSet<AmqpBinding>,
    outgoing: VecDeque<FromSource>,
    /// The source hands nothing over before this moment.
    pub(super) dawdles_until: Duration,
    /// The loop does not turn before this moment.
    pub(super) sleeps_until: Duration,
    pub(super) outages: Vec<Outage>,
    /// It takes no connections any more.
    pub(super) is_draining: bool,
    /// What the platform is about to ask.
    requests: VecDeque<Request>,
    /// Modules that are stopped, or will be.
    pub(super) stopped: BTreeSet<&'static str>,
}

impl Process {
    /// One that has just started, and that no client knows.
    pub(super) fn new(
        config: &Config,
        incarnation: usize,
        born: Duration,
        unix_start_ms: u64,
        rng: &mut Rng,
    ) -> Self {
        let (source, handoff) = handoff_bounded(LoopWaker::new(|| Ok(())), rng.usize(2..60));
        let (asker, requests) = ask_channels(LoopWaker::new(|| Ok(())), 4, 4);
        let epoch = Instant::now();
        let now = Now {
            clock: Duration::ZERO,
            unix_ms: unix_start_ms + born.as_millis() as u64,
        };
        let hub = Hub::new(
            SessionLimits::from(config),
            config.authenticator().expect("a valid token file"),
            Families::new(&config.families).expect("valid families"),
            now,
            rng.u64(..),
        );
        let parts = ReactorParts {
            inquiry: None,
            ring: None,
            handoff,
            epoch,
            connections_max: usize::MAX,
            more_metrics: Box::new(|_| ()),
            trim_heap: || (),
        };
        let mut reactor = Reactor::new(hub, parts);
        reactor.take_control(requests);
        reactor.hub.limits.liveness =
            LivenessRules::new(None, Duration::from_secs(10), None, Duration::from_secs(10));
        let mut process = Self {
            incarnation,
            reactor,
            source,
            asker,
            epoch,
            born,
            unix_start_ms,
            link: Link::Lost,
            away_since: born,
            queue: Queue::new(),
            wanted: BTreeMap::new(),
            unconfirmed: Vec::new(),
            lost: BTreeSet::new(),
            outgoing: VecDeque::new(),
            dawdles_until: Duration::ZERO,
            sleeps_until: Duration::ZERO,
            outages: Vec::new(),
            is_draining: false,
            requests: VecDeque::new(),
            stopped: BTreeSet::new(),
        };
        process.come_up(0);
        process
    }

    pub(super) fn now(&self, clock: Duration) -> Now {
        Now {
            clock: clock - self.born,
            unix_ms: self.unix_start_ms + clock.as_millis() as u64,
        }
    }

    pub(super) fn has_history(&self) -> bool {
        super::world::HAS_HISTORY && self.reactor.hub.history.is_on()
    }

    /// The source takes the loop's commands, and puts in force what it can.
    fn obey(&mut self, rng: &mut Rng) {
        let commands: Vec<ToSource> = self.source.commands.try_iter().flatten().collect();
        for command in commands {
            match command {
                ToSource::Bind {
                    binding, ticket, ..
                } => {
                    self.forget(&binding);
                    self.wanted.insert(binding.clone(), ticket);
                    self.unconfirmed.push(binding);
                }
                ToSource::Join { .. } | ToSource::Stop => {}
                ToSource::Unbind(binding) => self.forget(&binding),
            }
        }
        if self.link == Link::Up && rng.u32(..4) > 0 {
            let bound = std::mem::take(&mut self.unconfirmed);
            self.queue.bindings.extend(bound.iter().cloned());
            self.confirm(bound);
        }
    }

    fn forget(&mut self, binding: &AmqpBinding) {
        // While the broker is away its queue keeps what it has; the reconnect takes it back.
        if self.link != Link::Away {
            self.queue.bindings.remove(binding);
        }
        self.lost.remove(binding);
        self.unconfirmed.retain(|one| one != binding);
        self.wanted.remove(binding);
    }

    fn confirm(&mut self, bound: Vec<AmqpBinding>) {
        if !bound.is_empty() {
            let message = FromSource::Bound(self.asked(bound));
            self.outgoing.push_back(message);
        }
    }

    fn asked(&self, bindings: Vec<AmqpBinding>) -> Vec<Asked> {
        let asked = bindings.into_iter().map(|binding| Asked {
            ticket: self.wanted.get(&binding).copied().unwrap_or_default(),
            binding,
        });
        asked.collect()
    }

    /// The broker is missed. `keeps`: the queue goes on.
    pub(super) fn go_down(&mut self, keeps: bool, clock: Duration) {
        self.link = if keeps { Link::Away } else { Link::Lost };
        self.away_since = clock;
        if !keeps {
            self.queue = Queue::new();
            self.outages.push(Outage {
                from: clock,
                last: None,
            });
        }
        let since = self.epoch + (clock - self.born);
        self.outgoing.push_back(FromSource::Down { since });
    }

    /// The broker is there. `latest`: the number of the latest event.
    pub(super) fn come_up(&mut self, latest: u64) {
        let bound = std::mem::take(&mut self.unconfirmed);
        let wanted = self.wanted.keys();
        self.queue.bindings = wanted
            .filter(|one| !self.lost.contains(one))
            .cloned()
            .collect();
        self.confirm(bound);
        let how = if self.link == Link::Lost {
            for outage in &mut self.outages {
                outage.last.get_or_insert(latest);
            }
            Return::Anew
        } else {
            Return::Unbroken
        };
        self.link = Link::Up;
        self.outgoing.push_back(FromSource::Up(how));
    }

    /// The queue was at its length limit.
    pub(super) fn overflow(&mut self, clock: Duration, latest: u64, rng: &mut Rng) {
        if self.link == Link::Up && self.queue.overflow(rng.usize(1..20)) {
            let since = self.epoch + (clock - self.born);
            // The source says so before it hands over what came behind.
            self.outgoing.push_back(FromSource::Overflowed { since });
            self.outages.push(Outage {
                from: clock,
                last: Some(latest),
            });
        }
    }

    /// An exchange was deleted: nothing that is published to it arrives here until [`Process::heal`].
    pub(super) fn lose(&mut self, exchange: &str, clock: Duration) {
        let bindings = self.queue.bindings.iter();
        let gone: Vec<AmqpBinding> = bindings
            .filter(|one| *one.exchange == *exchange)
            .cloned()
            .collect();
        if self.link != Link::Up || gone.is_empty() {
            return;
        }
        for one in &gone {
            self.queue.bindings.remove(one);
            self.lost.insert(one.clone());
        }
        self.outages.push(Outage {
            from: clock,
            last: None,
        });
        let message = FromSource::Lost(self.asked(gone));
        self.outgoing.push_back(message);
    }

    /// What was lost is in force again.
    pub(super) fn heal(&mut self, latest: u64) {
        if self.link == Link::Up && !self.lost.is_empty() {
            let bound: Vec<AmqpBinding> = std::mem::take(&mut self.lost).into_iter().collect();
            self.queue.bindings.extend(bound.iter().cloned());
            for outage in &mut self.outages {
                outage.last.get_or_insert(latest);
            }
            self.confirm(bound);
        }
    }

    /// Whether something that was in force is lost.
    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Whether a lost binding would have taken this.
    pub(super) fn misses(&self, exchange: &str, routing_key: &str) -> bool {
        let mut lost = self.lost.iter();
        lost.any(|one| *one.exchange == *exchange && crate::model::routes(&one.key, routing_key))
    }

    /// Starts or stops the families of a module.
    pub(super) fn switch(&mut self, module: &'static str) {
        let is_start = self.stopped.contains(module);
        let request = Request {
            reply_to: ReplyTo {
                routing_key: "nobody".into(),
                pid: None,
            },
            msg_id: None,
            question: Question::Module(ModuleChange {
                module: module.into(),
                is_start,
                persist: false,
            }),
        };
        match is_start {
            true => self.stopped.remove(module),
            false => self.stopped.insert(module),
        };
        self.requests.push_back(request);
    }

    /// The token file says something else.
    pub(super) fn reread(&mut self) {
        let authenticator = &mut self.reactor.hub.authenticator;
        let reloaded =
            authenticator.reload(blackhole::config::read_tokens, blackhole::config::read_keys);
        reloaded.expect("a valid token file");
        self.reactor.renew_identities();
    }

    /// The broker delivers, the source hands over, the loop turns.
    pub(super) fn turn(&mut self, ready: &[Ready], clock: Duration, log: &Log, rng: &mut Rng) {
        self.queue.arrive(clock, rng);
        self.obey(rng);
        if self.link == Link::Up && clock >= self.dawdles_until {
            while let Some(number) = self.queue.deliver() {
                self.outgoing
                    .push_back(FromSource::Event(event(log, number)));
            }
        }
        while let Some(message) = self.outgoing.pop_front() {
            if let Err(back) = self.source.send_timeout(message, Duration::ZERO) {
                self.outgoing.push_front(back.expect("the loop is there"));
                break;
            }
        }
        if let Some(request) = self.requests.pop_front()
            && let Err(back) = self.asker.try_ask(request)
        {
            self.requests.push_front(back);
        }
        let _answers = self.asker.answers.try_iter().count();
        self.reactor.turn(ready, self.now(clock));
    }

    /// What is under way.
    pub(super) fn unrest(&self, clock: Duration) -> String {
        format!(
            "{} to hand over, {} to bind, {:?}, {} commands, patience {:?}, {} resume, lingering {:?}, months {:?}, now {:?}",
            self.outgoing.len(),
            self.unconfirmed.len(),
            self.queue,
            self.source.commands.len(),
            self.reactor.patience(self.now(clock)),
            self.reactor.hub.resumers.len(),
            self.reactor.hub.subscriptions.lingering_due(),
            self.reactor.hub.subscriptions.months_due(),
            self.now(clock),
        )
    }

    /// Nothing is under way.
    pub(super) fn is_quiet(&self, clock: Duration) -> bool {
        self.outgoing.is_empty()
            && self.requests.is_empty()
            && self.unconfirmed.is_empty()
            && self.queue.is_empty()
            && self.source.commands.is_empty()
            && self.reactor.patience(self.now(clock)) > Duration::ZERO
    }
}

fn event(log: &Log, number: u64) -> Arc<Event> {
    let published = log.get(number);
    let exchange: Arc<str> = published.exchange.into();
    let key = published.routing_key.as_str().into();
    let decoded = Event::decode(exchange, key, published.body.clone(), None);
    Arc::new(decoded.expect("a valid body"))
}
