//! The worker: it keeps the bindings that the loop wants in force, on one connection after another, and tells the loop
//! how each stands. The broker is a trait here, so that the worker is tested without a broker.
//!
//! Invariants: a step serves one batch of binds and one batch of unbinds, so neither starves the other; the loop's
//! commands are taken between two steps, and while a message waits for the loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, select};

use super::abort::Abort;
use super::bindings::{Bindings, NAME_BYTES_MAX};
use super::broker::{Answer, Broker, Lost};
use super::consumer::HANDOVER_SLICE;
use super::counters::{AmqpCounters, add, increment, set};
use super::options::AmqpOptions;
use super::our_queue::QueueBounds;
use super::url::bounded;
use super::watchdog::Watchdog;
use crate::handoff::{Commands, FromSource, SourceEnd, ToSource};
use crate::limits::{FAULTS_LOGGED_FREELY, PERMISSIONS_TOLD_MAX};
use crate::log_limit::LogLimit;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::{AmqpBinding, Ticket};

/// How often refused exchanges and bindings are tried again (AMQP rail 8).
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// How often it is asked again whether the user still lacks a permission.
const ASK_BARRED: Duration = Duration::from_secs(15);
/// How often the queue's length is asked for and some bindings are bound again.
const CHECK: Duration = Duration::from_secs(1);
/// Checks in which every binding is bound again once, unless there are too many for that.
const RECHECK_PASS: usize = 30;
/// Bindings that one check binds again, at most. They are some 17 ms of a broker's work.
const RECHECKS_MAX: usize = 64;
/// Bindings of one batch, pipelined before the one answer that confirms them all: some 70 ms at a broker's 3,800
/// bindings a second. A new binding waits for at most one such batch, one of [`UNBINDS_MAX`], and its own.
const BINDS_MAX: usize = 256;
/// Bindings taken back in one batch, at most: some 70 ms of a broker's work.
const UNBINDS_MAX: usize = 256;
/// Longest wait for a command. It bounds how late a stop without a `Stop` is noticed.
pub(super) const IDLE: Duration = Duration::from_secs(1);

/// The thread is to end: told so, or the loop is gone.
#[derive(Debug)]
pub(super) struct Halt;

/// Why serving one connection ended.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The thread is to end.
    Halt,
    /// The connection is of no more use.
    Lost(Lost),
}

impl Trouble {
    pub(super) fn because(cause: impl Into<String>) -> Self {
        Self::Lost(Lost::Because(cause.into()))
    }
}

impl From<Halt> for Trouble {
    fn from(_: Halt) -> Self {
        Self::Halt
    }
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// When the work that is done at intervals is due next, for one connection.
pub(super) struct Schedule {
    retry_at: Instant,
    ask_barred_at: Instant,
    check_at: Instant,
    /// When the queue was last seen below its limit.
    below_at: Instant,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            retry_at: now + RETRY_REFUSED,
            ask_barred_at: now + ASK_BARRED,
            check_at: now,
            below_at: now,
        }
    }
}

/// The text for the log about a binding that is too long for AMQP. Clients choose its names, so only their lengths are
/// in it.
fn too_long(exchange_bytes: usize, key_bytes: usize) -> String {
    format!(
        "binding not bound: exchange of {exchange_bytes} bytes, key of {key_bytes}; at most {NAME_BYTES_MAX} each"
    )
}

/// What outlives every connection.
pub(super) struct Worker {
    pub(super) source: SourceEnd,
    pub(super) counters: Arc<AmqpCounters>,
    pub(super) abort: Arc<Abort>,
    pub(super) watchdog: Arc<Watchdog>,
    pub(super) bindings: Bindings,
    pub(super) bounds: QueueBounds,
    /// What the loop was told last that the user lacks.
    barred: Vec<Box<str>>,
    refusals: LogLimit,
    too_long: LogLimit,
    overflows: LogLimit,
    /// Every event published before this moment has left the broker's queue and was received.
    pub(super) caught_up: Instant,
    /// The queue of before was found, and it has not been seen empty since.
    pub(super) has_backlog: bool,
}

impl Worker {
    pub(super) fn new(
        options: &AmqpOptions,
        source: SourceEnd,
        counters: Arc<AmqpCounters>,
        abort: Arc<Abort>,
    ) -> Self {
        Self {
            source,
            counters,
            abort,
            watchdog: Arc::new(Watchdog::new(options.answer_max)),
            bindings: Bindings::default(),
            bounds: QueueBounds {
                length_max: options.max_queue_length,
                expires: options.queue_expires,
                prefetch: options.prefetch,
            },
            barred: Vec::new(),
            refusals: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
            too_long: LogLimit::default(),
            overflows: LogLimit::default(),
            caught_up: Instant::now(),
            has_backlog: false,
        }
    }

    /// Binds what was wanted when the connection began. What the loop asks for meanwhile comes after that, so this ends
    /// however much comes and goes.
    pub(super) fn restore(&mut self, broker: &mut impl Broker) -> Result<(), Trouble> {
        self.take_commands()?;
        self.bindings.begin_restoring();
        let mut looked_at = Instant::now();
        while self.bindings.has_to_restore() {
            self.bind_batch(broker)?;
            // A queue that is not consumed yet expires unless it is looked at, and much to bind takes long.
            if looked_at.elapsed() >= CHECK {
                broker.queue_length()?;
                looked_at = Instant::now();
            }
            self.update_gauges();
            self.take_commands()?;
        }
        self.bindings.end_restoring();
        let lost = self.bindings.take_lost();
        if !lost.is_empty() {
            self.tell(FromSource::Lost(lost))?;
        }
        Ok(())
    }

    /// Serves the loop's commands until the consumer has ended (`Ok`) or there is trouble.
    pub(super) fn serve(
        &mut self,
        broker: &mut impl Broker,
        ended: &Receiver<()>,
        behind: &Receiver<()>,
    ) -> Result<(), Trouble> {
        let mut schedule = Schedule::new(Instant::now());
        let commands = self.source.commands.clone();
        loop {
            self.take_commands()?;
            let wait = self.step(broker, &mut schedule, behind, Instant::now())?;
            select! {
                recv(commands) -> told => self.apply(told.map_err(|_| Halt)?)?,
                recv(ended) -> _ => return Ok(()),
                default(wait) => {}
            }
        }
    }

    /// Serves one batch of binds, one of unbinds, and what is due. Returns how long the next step may wait.
    fn step(
        &mut self,
        broker: &mut impl Broker,
        schedule: &mut Schedule,
        behind: &Receiver<()>,
        now: Instant,
    ) -> Result<Duration, Trouble> {
        self.bind_batch(broker)?;
        self.unbind_batch(broker, now)?;
        self.report()?;
        if now >= schedule.retry_at {
            schedule.retry_at = now + RETRY_REFUSED;
            if self.bindings.refused() > 0 {
                broker.forget_refused();
                self.bindings.retry_refused();
            }
        }
        if now >= schedule.ask_barred_at {
            schedule.ask_barred_at = now + ASK_BARRED;
            if !self.barred.is_empty() {
                self.ask_barred(broker, false)?;
            }
        }
        if now >= schedule.check_at {
            schedule.check_at = now + CHECK;
            self.check(broker, schedule, behind, now)?;
        }
        Ok(match self.bindings.next_unwanted() {
            _ if self.bindings.queued() > 0 => Duration::ZERO,
            Some(None) => Duration::ZERO,
            Some(Some(due)) => due.saturating_duration_since(now).min(IDLE),
            None => IDLE,
        })
    }

    /// Asks which permissions the user lacks, and tells the log and the loop what has changed; on a new connection the
    /// log is told all of it. Of many lines both get the first few.
    pub(super) fn ask_barred(
        &mut self,
        broker: &mut impl Broker,
        is_new: bool,
    ) -> Result<(), Trouble> {
        let mut lines = broker.barred()?;
        add(&self.counters.permission_refusals, lines.len());
        set(&self.counters.permissions_missing, lines.len());
        lines.truncate(PERMISSIONS_TOLD_MAX);
        for line in &lines {
            if (is_new || !self.barred.contains(line))
                && let Some(left_out) = self.refusals.pass(Instant::now())
            {
                log::warn!("amqp: {line}: its events are missing{left_out}");
            }
        }
        if lines.is_empty() && !self.barred.is_empty() {
            log::info!("amqp: the broker's user lacks no permission any more");
        }
        Ok(self.tell_barred(lines)?)
    }

    /// Tells the loop what the user lacks, if that has changed.
    pub(super) fn tell_barred(&mut self, lines: Vec<Box<str>>) -> Result<(), Halt> {
        if lines == self.barred {
            return Ok(());
        }
        self.barred.clone_from(&lines);
        self.tell(FromSource::Barred(lines))
    }

    fn bind_batch(&mut self, broker: &mut impl Broker) -> Result<(), Trouble> {
        let batch = self.bindings.take_batch(BINDS_MAX);
        if batch.is_empty() {
            return Ok(());
        }
        for (binding, answer) in broker.bind(batch)? {
            match answer {
                Answer::InForce => {
                    increment(&self.counters.binds);
                    self.bindings.bound(&binding);
                }
                Answer::Refused(why) => {
                    self.bindings.refuse(&binding);
                    if let Some(why) = why
                        && let Some(left_out) = self.refusals.pass(Instant::now())
                    {
                        log::warn!("amqp: refused: {}{left_out}", bounded(&why));
                    }
                }
                Answer::Untried => self.bindings.requeue(&binding),
                Answer::ExchangeGone => {
                    self.bindings.exchange_vanished(&binding.exchange);
                    self.bindings.requeue(&binding);
                }
            }
        }
        Ok(())
    }

    fn unbind_batch(&mut self, broker: &mut impl Broker, now: Instant) -> Result<(), Trouble> {
        let unwanted: Vec<_> = std::iter::from_fn(|| self.bindings.take_unwanted(now))
            .take(UNBINDS_MAX)
            .collect();
        if !unwanted.is_empty() {
            if let Err(lost) = broker.unbind(&unwanted) {
                for binding in unwanted {
                    self.bindings.not_unbound(binding, now);
                }
                return Err(lost.into());
            }
            add(&self.counters.unbinds, unwanted.len());
        }
        Ok(())
    }

    /// Asks for the queue's length, and binds some bindings again.
    fn check(
        &mut self,
        broker: &mut impl Broker,
        schedule: &mut Schedule,
        behind: &Receiver<()>,
        now: Instant,
    ) -> Result<(), Trouble> {
        let length = broker.queue_length()?;
        if length == Some(0) {
            self.note_caught_up(now);
            if std::mem::take(&mut self.has_backlog) {
                self.tell(FromSource::CaughtUp)?;
            }
        }
        let length = length.unwrap_or_default();
        if behind.try_recv().is_ok() && self.is_queue_full(length) {
            self.tell(FromSource::Overflowed {
                since: schedule.below_at,
            })?;
        }
        schedule.below_at = now;
        let share = self.bindings.in_force().div_ceil(RECHECK_PASS);
        let rechecks = self.bindings.take_rechecks(share.min(RECHECKS_MAX));
        if !rechecks.is_empty() {
            for exchange in broker.rebind(&rechecks)? {
                self.bindings.exchange_vanished(&exchange);
            }
        }
        Ok(())
    }

    /// What was published before this moment was received.
    pub(super) fn note_caught_up(&mut self, at: Instant) {
        self.caught_up = at;
        self.source.note_caught_up(at);
    }

    /// Whether the queue is at its length limit, or so near to it that it may have reached it since the last check.
    fn is_queue_full(&mut self, length: u32) -> bool {
        let is_full = self.bounds.is_full(length);
        if is_full {
            self.suspect_overflow(length);
        }
        is_full
    }

    /// The queue is at its limit: counts it and tells the log.
    pub(super) fn suspect_overflow(&mut self, length: u32) {
        increment(&self.counters.overflow_suspicions);
        let limit = self.bounds.length_max.unwrap_or_default();
        if let Some(left_out) = self.overflows.pass(Instant::now()) {
            log::warn!(
                "amqp: the queue is at its limit ({length} of {limit}), the broker drops the oldest events{left_out}"
            );
        }
    }

    /// Tells the loop what is newly in force or refused.
    pub(super) fn report(&mut self) -> Result<(), Halt> {
        self.update_gauges();
        let (lost, bound) = (self.bindings.take_lost(), self.bindings.take_bound());
        if !lost.is_empty() {
            self.tell(FromSource::Lost(lost))?;
        }
        if !bound.is_empty() {
            self.tell(FromSource::Bound(bound))?;
        }
        Ok(())
    }

    /// Hands `message` to the loop; while the loop is behind, commands are still taken.
    pub(super) fn tell(&mut self, mut message: FromSource) -> Result<(), Halt> {
        loop {
            message = match self.source.send_timeout(message, HANDOVER_SLICE) {
                Ok(()) => return Ok(()),
                Err(None) => return Err(Halt),
                Err(Some(message)) => message,
            };
            increment(&self.counters.handover_waits);
            self.take_commands()?;
        }
    }

    /// Waits before the next try, and takes commands meanwhile.
    pub(super) fn pause(&mut self, pause: Duration) -> Result<(), Halt> {
        let until = Instant::now() + pause;
        loop {
            if self.abort.is_stopping() {
                return Err(Halt);
            }
            match self
                .source
                .commands
                .recv_deadline(until.min(Instant::now() + IDLE))
            {
                Ok(commands) => self.apply(commands)?,
                Err(RecvTimeoutError::Disconnected) => return Err(Halt),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    pub(super) fn take_commands(&mut self) -> Result<(), Halt> {
        loop {
            if self.abort.is_stopping() {
                return Err(Halt);
            }
            match self.source.commands.try_recv() {
                Ok(commands) => self.apply(commands)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Halt),
            }
        }
    }

    pub(super) fn apply(&mut self, commands: Commands) -> Result<(), Halt> {
        for command in commands {
            match command {
                ToSource::Bind {
                    binding,
                    ticket,
                    account,
                } => self.bind(binding, ticket, account),
                ToSource::Join { binding, account } => self.bindings.join(&binding, account),
                ToSource::Unbind(binding) => self.bindings.unbind(&binding, Instant::now()),
                ToSource::Stop => return Err(Halt),
            }
        }
        Ok(())
    }

    fn bind(&mut self, binding: AmqpBinding, ticket: Ticket, account: AccountTag) {
        let (exchange_bytes, key_bytes) = (binding.exchange.len(), binding.key.len());
        if self.bindings.bind(binding, ticket, account) {
            return;
        }
        increment(&self.counters.binds_too_long);
        if let Some(left_out) = self.too_long.pass(Instant::now()) {
            let fault = too_long(exchange_bytes, key_bytes);
            log::warn!("amqp: {fault}{left_out}");
        }
    }

    pub(super) fn update_gauges(&self) {
        set(&self.counters.bindings_wanted, self.bindings.wanted());
        set(&self.counters.bindings_in_force, self.bindings.in_force());
        set(&self.counters.bindings_refused, self.bindings.refused());
        set(&self.counters.binds_queued, self.bindings.queued());
        set(
            &self.counters.unbinds_queued,
            self.bindings.unbinds_queued(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::AccountId;
    use crate::amqp::lingering::LINGER;
    use crate::handoff::{LoopEnd, LoopWaker, Return, handoff};
    use crate::routing::amqp_binding::Asked;
    use crate::routing::broker_bindings::{Ask, BrokerBindings};
    use crate::routing::waiters::Waiter;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    fn binding(number: usize) -> AmqpBinding {
        AmqpBinding {
            exchange: ["callevt", "faxes"][number % 2].into(),
            key: number.to_string().into(),
        }
    }

    fn account(number: u8) -> Option<AccountId> {
        AccountId::parse(&format!("{number:032x}"))
    }

    /// The loop, as far as bindings go: its real table, the real hand-off, and who waits.
    struct Loop {
        end: LoopEnd,
        table: BrokerBindings,
        users: BTreeMap<usize, u32>,
        /// Of those that wait, who: the binding's number and a serial number.
        waiting: BTreeMap<Waiter, usize>,
        next_waiter: u32,
        ups: usize,
    }

    impl Loop {
        fn acquire(&mut self, number: usize, by: u8) {
            let acquired = self.table.acquire(&binding(number), 1, account(by));
            *self.users.entry(number).or_default() += 1;
            if !acquired.is_in_force {
                let waiter = Waiter::new(0, self.next_waiter);
                self.table.wait(acquired.id, waiter);
                self.waiting.insert(waiter, number);
                self.next_waiter += 1;
            }
            let binding = binding(number);
            let command = acquired.ask.map(|ask| match ask {
                Ask::Bind(ticket, account) => ToSource::Bind {
                    binding,
                    ticket,
                    account,
                },
                Ask::Join(account) => ToSource::Join { binding, account },
            });
            self.end.tell(command.into_iter().collect());
        }

        /// The last user of it leaves, and with them all who wait for it.
        fn release(&mut self, number: usize) {
            if let Some(users) = self.users.remove(&number) {
                assert!(self.table.release(&binding(number), users));
                self.waiting.retain(|_, waits_for| *waits_for != number);
                self.end.tell(vec![ToSource::Unbind(binding(number))]);
            }
        }

        /// Takes what the source says; who waited and is told that the binding is in force must be right.
        fn listen(&mut self, held: &BTreeSet<AmqpBinding>) {
            self.end.tell(Vec::new());
            while let Ok(message) = self.end.try_recv() {
                let told = match message {
                    FromSource::Barred(lines) => panic!("nothing is barred: {lines:?}"),
                    FromSource::Up(_) => {
                        self.ups += 1;
                        self.table.on_up()
                    }
                    FromSource::Down { .. } => {
                        self.table.on_down();
                        Vec::new()
                    }
                    FromSource::Bound(bound) => {
                        let told = |asked: &Asked| self.table.on_bound(asked);
                        bound.iter().flat_map(told).collect()
                    }
                    FromSource::Lost(lost) => {
                        // They give up, and go on needing it.
                        let refused = lost.iter().flat_map(|asked| self.table.on_lost(asked));
                        for waiter in refused.collect::<Vec<_>>() {
                            assert!(self.waiting.remove(&waiter).is_some(), "it waits");
                        }
                        Vec::new()
                    }
                    FromSource::CaughtUp | FromSource::Overflowed { .. } | FromSource::Event(_) => {
                        Vec::new()
                    }
                };
                for waiter in told {
                    let number = self
                        .waiting
                        .remove(&waiter)
                        .expect("it waits, and is told once");
                    assert!(
                        held.contains(&binding(number)),
                        "success means live: {number} {held:?}"
                    );
                }
            }
        }
    }

    /// What is done while the broker works on one call.
    type Meanwhile = Vec<(u8, usize, u8)>;

    /// A broker that does at once what it is asked, while the loop goes on.
    struct Fake {
        the_loop: Loop,
        on_broker: BTreeSet<AmqpBinding>,
        /// What the worker has put there and not taken back on this connection: there, but for what others did.
        held: BTreeSet<AmqpBinding>,
        meanwhile: VecDeque<Meanwhile>,
        /// Exchanges that are refused.
        refused: BTreeSet<Arc<str>>,
        /// Exchanges that somebody has deleted.
        gone: BTreeSet<Arc<str>>,
        is_lost: bool,
        /// Of those that were lost, every other found its queue again.
        losses: usize,
        batches: Vec<Vec<AmqpBinding>>,
    }

    impl Fake {
        fn new(end: LoopEnd) -> Self {
            let the_loop = Loop {
                end,
                table: BrokerBindings::new(),
                users: BTreeMap::new(),
                waiting: BTreeMap::new(),
                next_waiter: 0,
                ups: 0,
            };
            Self {
                the_loop,
                on_broker: BTreeSet::new(),
                held: BTreeSet::new(),
                meanwhile: VecDeque::new(),
                refused: BTreeSet::new(),
                gone: BTreeSet::new(),
                is_lost: false,
                losses: 0,
                batches: Vec::new(),
            }
        }

        fn play(&mut self, (kind, number, by): (u8, usize, u8)) {
            match kind {
                0..=2 => self.the_loop.acquire(number, by),
                3 | 4 => self.the_loop.release(number),
                5 => {
                    let exchange = binding(number).exchange;
                    if !self.refused.remove(&exchange) {
                        self.refused.insert(exchange);
                    }
                }
                6 => {
                    let exchange = binding(number).exchange;
                    self.on_broker.retain(|one| one.exchange != exchange);
                    self.gone.insert(exchange);
                }
                7 => self.is_lost = true,
                _ => self.the_loop.listen(&self.held),
            }
        }

        fn answered(&mut self) -> Result<(), Lost> {
            for step in self.meanwhile.pop_front().unwrap_or_default() {
                self.play(step);
            }
            if self.is_lost {
                return Err(Lost::ClientGone);
            }
            Ok(())
        }
    }

    impl Broker for Fake {
        fn barred(&mut self) -> Result<Vec<Box<str>>, Lost> {
            Ok(Vec::new())
        }

        fn bind(&mut self, batch: Vec<AmqpBinding>) -> Result<Vec<(AmqpBinding, Answer)>, Lost> {
            assert!(self.batches.len() < 10_000, "the worker spins");
            self.batches.push(batch.clone());
            let mut untried = BTreeSet::new();
            let mut answer = |binding: &AmqpBinding| {
                let exchange = &binding.exchange;
                if self.refused.contains(exchange) {
                    return Answer::Refused(None);
                }
                if untried.contains(exchange) {
                    return Answer::Untried;
                }
                if self.gone.remove(exchange) {
                    // Seen only now, and declared again by the next batch.
                    untried.insert(exchange.clone());
                    return Answer::ExchangeGone;
                }
                self.on_broker.insert(binding.clone());
                self.held.insert(binding.clone());
                Answer::InForce
            };
            let answers = batch.into_iter().map(|one| (answer(&one), one));
            let answers = answers.map(|(answer, one)| (one, answer)).collect();
            self.answered().map(|()| answers)
        }

        fn unbind(&mut self, batch: &[AmqpBinding]) -> Result<(), Lost> {
            for binding in batch {
                self.on_broker.remove(binding);
                self.held.remove(binding);
            }
            self.answered()
        }

        fn rebind(&mut self, batch: &[AmqpBinding]) -> Result<Vec<Arc<str>>, Lost> {
            let mut gone = Vec::new();
            for binding in batch {
                if self.gone.remove(&binding.exchange) {
                    gone.push(binding.exchange.clone());
                } else if !gone.contains(&binding.exchange) {
                    self.on_broker.insert(binding.clone());
                }
            }
            self.answered().map(|()| gone)
        }

        fn queue_length(&mut self) -> Result<Option<u32>, Lost> {
            self.answered().map(|()| Some(0))
        }

        fn forget_refused(&mut self) {}
    }

    /// A worker and its broker, by a clock of their own.
    struct Scene {
        worker: Worker,
        fake: Fake,
        schedule: Schedule,
        now: Instant,
        behind: Receiver<()>,
    }

    impl Scene {
        fn new() -> Self {
            let (source, end) = handoff(LoopWaker::new(|| Ok(())));
            let options = AmqpOptions {
                urls: Vec::new(),
                tls: Default::default(),
                prefetch: 1,
                max_queue_length: None,
                queue_expires: Duration::from_secs(60),
                durable_queue: false,
                exchanges: Vec::new(),
                pause_max: Duration::ZERO,
                answer_max: Duration::from_secs(1),
            };
            let now = Instant::now();
            Self {
                worker: Worker::new(&options, source, Arc::default(), Arc::default()),
                fake: Fake::new(end),
                schedule: Schedule::new(now),
                now,
                behind: crossbeam_channel::never(),
            }
        }

        /// The worker hears all that the loop has said: twice, as the loop keeps what it says behind a list on its way.
        fn hear(&mut self) {
            for _ in 0..2 {
                assert!(self.worker.take_commands().is_ok());
                self.fake.the_loop.end.tell(Vec::new());
            }
            assert!(self.worker.take_commands().is_ok());
        }

        /// A new connection, up to `Up`. False: it was lost before.
        fn connect(&mut self) -> bool {
            self.schedule = Schedule::new(self.now);
            if self.worker.restore(&mut self.fake).is_err() {
                self.disconnect();
                return false;
            }
            let is_told = self.worker.tell(FromSource::Up(Return::Anew)).is_ok()
                && self.worker.report().is_ok();
            assert!(is_told, "the loop is there");
            true
        }

        fn disconnect(&mut self) {
            self.fake.the_loop.listen(&self.fake.held);
            self.fake.is_lost = false;
            self.fake.losses += 1;
            self.worker.bindings.connection_lost();
            if self.fake.losses.is_multiple_of(2) {
                (self.fake.on_broker, self.fake.held) = (BTreeSet::new(), BTreeSet::new());
                self.worker.bindings.queue_is_new();
            }
        }

        /// One step, `after` so much time. False: the connection was lost, and `Down` is told.
        fn step(&mut self, after: Duration) -> bool {
            self.now += after;
            self.hear();
            let Self {
                worker,
                fake,
                schedule,
                behind,
                now,
            } = self;
            if worker.step(fake, schedule, behind, *now).is_ok() {
                return true;
            }
            self.disconnect();
            assert!(
                self.worker
                    .tell(FromSource::Down { since: self.now })
                    .is_ok()
            );
            false
        }

        /// All that still has to happen happens: nothing fails any more.
        fn settle(&mut self) {
            (self.fake.refused, self.fake.gone) = (BTreeSet::new(), BTreeSet::new());
            self.fake.meanwhile.clear();
            for _ in 0..20 {
                if !self.step(RETRY_REFUSED.max(LINGER)) {
                    self.connect();
                }
                self.fake.the_loop.listen(&self.fake.held);
            }
        }
    }

    #[test]
    fn a_restore_ends_although_most_of_it_is_taken_back_and_more_is_asked_for_under_it() {
        let mut scene = Scene::new();
        for number in 0..10_240 {
            scene.fake.the_loop.acquire(number, 1);
        }
        scene.hear();
        let mut meanwhile: Meanwhile = (600..10_240).map(|number| (3, number, 1)).collect();
        meanwhile.push((0, 99_999, 1));
        scene.fake.meanwhile.push_back(meanwhile);
        // And from then on more is asked for than is bound, without end.
        let mut next = 100_000..;
        for _ in 0..1000 {
            let more = next.by_ref().take(2 * BINDS_MAX);
            let more: Meanwhile = more.map(|number| (0, number, 2)).collect();
            scene.fake.meanwhile.push_back(more);
        }
        assert!(scene.connect());
        assert!(scene.fake.batches.len() <= 600 / BINDS_MAX + 2);
        scene.fake.meanwhile.clear();
        scene.fake.the_loop.listen(&scene.fake.held);
        for number in 0..600 {
            assert!(scene.fake.on_broker.contains(&binding(number)), "{number}");
        }
    }

    #[test]
    fn an_account_that_asks_for_ten_thousand_is_one_turn_before_another_that_asks_for_one() {
        let mut scene = Scene::new();
        assert!(scene.connect());
        for number in 0..10_000 {
            scene.fake.the_loop.acquire(number, 1);
        }
        scene.fake.the_loop.acquire(10_000, 2);
        // A third one waits for what the first has asked for last.
        scene.fake.the_loop.acquire(9_999, 3);
        for number in 5_000..10_000 - 1 {
            scene.fake.the_loop.release(number);
        }
        assert!(scene.step(Duration::ZERO));
        let first = &scene.fake.batches[0];
        for number in [10_000, 9_999] {
            let at = first.iter().position(|one| *one == binding(number));
            assert!(at.is_some_and(|at| at < 3), "{number}: {at:?}");
        }
        while scene.worker.bindings.queued() > 0 {
            scene.step(Duration::ZERO);
        }
        let bound: usize = scene.fake.batches.iter().map(Vec::len).sum();
        assert_eq!(bound, 5_002, "what nobody wants is not bound");
        assert_eq!(scene.fake.on_broker.len(), 5_002);
    }

    #[test]
    fn binds_and_unbinds_take_turns() {
        let mut scene = Scene::new();
        assert!(scene.connect());
        for number in 0..4_000 {
            scene.fake.the_loop.acquire(number, 1);
        }
        while scene.worker.bindings.queued() > 0 || scene.fake.on_broker.is_empty() {
            scene.step(Duration::ZERO);
        }
        for number in 0..4_000 {
            scene.fake.the_loop.release(number);
            scene.fake.the_loop.acquire(4_000 + number, 1);
        }
        for turn in 1..=5 {
            scene.step(Duration::ZERO);
            assert_eq!(scene.fake.on_broker.len(), 4_000);
            let old = (0..4_000).filter(|number| scene.fake.on_broker.contains(&binding(*number)));
            assert_eq!(old.count(), 4_000 - turn * UNBINDS_MAX);
        }
    }

    #[test]
    fn a_binding_that_is_too_long_is_told_with_the_lengths_of_its_names() {
        assert_eq!(
            too_long(7, 300),
            "binding not bound: exchange of 7 bytes, key of 300; at most 255 each"
        );
    }

    #[test]
    fn a_queue_of_before_that_is_seen_empty_is_told_once() {
        let mut scene = Scene::new();
        scene.connect();
        let told = |scene: &mut Scene| {
            scene.step(Duration::from_secs(5));
            let end = &scene.fake.the_loop.end;
            let messages = std::iter::from_fn(|| end.try_control().ok());
            messages
                .filter(|it| matches!(it, FromSource::CaughtUp))
                .count()
        };
        assert_eq!(told(&mut scene), 0, "nothing was left from before");
        scene.worker.has_backlog = true;
        assert_eq!([(); 3].map(|()| told(&mut scene)), [1, 0, 0]);
    }

    #[test]
    fn what_waits_for_a_source_that_does_not_listen_is_bounded_by_what_is_wanted() {
        let mut scene = Scene::new();
        for number in 0..50_000 {
            scene.fake.the_loop.acquire(number, 1);
            scene.fake.the_loop.release(number);
            assert!(scene.fake.the_loop.end.commands_waiting() <= 3);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 256 } else { 2048 }))]

        /// Whatever comes in whatever order: a waiter that is told that a binding is in force is told the truth, and is
        /// told once; in the end exactly the wanted bindings are on the broker, every waiter is told, and no count has
        /// drifted.
        #[test]
        fn a_worker_binds_what_is_wanted_and_says_so_whatever_happens_meanwhile(
            before in proptest::collection::vec((0..5_u8, 0..12_usize, 0..4_u8), 0..40),
            meanwhile in proptest::collection::vec(proptest::collection::vec((0..10_u8, 0..12_usize, 0..4_u8), 0..8), 0..60),
            pauses in proptest::collection::vec(0..4_u64, 0..40),
        ) {
            let mut scene = Scene::new();
            before.into_iter().for_each(|step| scene.fake.play(step));
            scene.fake.meanwhile = meanwhile.into();
            let mut is_up = scene.connect();
            for pause in pauses {
                is_up = if is_up {
                    scene.step(Duration::from_secs(pause))
                } else {
                    scene.connect()
                };
                scene.fake.the_loop.listen(&scene.fake.held);
            }
            if !is_up {
                scene.fake.meanwhile.clear();
                scene.connect();
            }
            scene.settle();
            let wanted: BTreeSet<_> = scene.fake.the_loop.users.keys().copied().map(binding).collect();
            prop_assert_eq!(&scene.fake.on_broker, &wanted);
            prop_assert!(scene.fake.the_loop.waiting.is_empty(), "{:?}", scene.fake.the_loop.waiting);
            prop_assert_eq!(scene.fake.the_loop.table.counts().confirmed, wanted.len());
            let bindings = &scene.worker.bindings;
            prop_assert_eq!((bindings.wanted(), bindings.in_force()), (wanted.len(), wanted.len()));
            prop_assert_eq!((bindings.queued(), bindings.refused(), bindings.unbinds_queued()), (0, 0, 0));
            prop_assert!(scene.fake.the_loop.ups > 0);
        }
    }
}
