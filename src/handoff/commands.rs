//! Commands of the loop that the source has not taken.
//!
//! One list of commands at a time is on its way. While the source has not taken it, later commands are kept here, and
//! those of one binding cancel out. So at most the commands of that list and one for each binding named since wait,
//! however long the source takes nothing.
//!
//! ```text
//!         tell: sent             tell: kept, merged
//! Taken -----------> OnItsWay -----------------------> MoreKept
//!   ^--- source takes it --'                               |
//!   '----------- source takes it, and wakes the loop ------'
//! ```
//!
//! Invariant: all changes of the state are read-modify-writes of one atomic. So either the loop finds the list taken,
//! or the source finds that more is kept and wakes the loop, which sends it at the end of that turn.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};

use super::messages::ToSource;
use super::wake::LoopWaker;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::{AmqpBinding, Ticket};

const TAKEN: u8 = 0;
const ON_ITS_WAY: u8 = 1;
const MORE_KEPT: u8 = 2;

/// The state that the loop and the source share.
struct Shared {
    state: AtomicU8,
    /// Commands of the list that is on its way.
    on_its_way: AtomicUsize,
    waker: LoopWaker,
}

/// Commands of one turn of the loop or more, in order; at least one. The source gets them together, so that it is woken
/// once: on a core that both share, a wake for each was a quarter of the cost of a connect with a binding of its own.
pub struct Commands {
    list: Vec<ToSource>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Commands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.list.fmt(f)
    }
}

impl IntoIterator for Commands {
    type Item = ToSource;
    type IntoIter = std::vec::IntoIter<ToSource>;

    fn into_iter(self) -> Self::IntoIter {
        self.shared.on_its_way.store(0, Ordering::Relaxed);
        if self.shared.state.swap(TAKEN, Ordering::AcqRel) == MORE_KEPT {
            self.shared.waker.wake();
        }
        self.list.into_iter()
    }
}

/// What the source is to be told of one binding.
#[derive(Debug)]
enum Kept {
    /// Bind it, for these accounts. The source has heard of it before, or not.
    Bind {
        ticket: Ticket,
        accounts: Vec<AccountTag>,
        is_known: bool,
    },
    /// These accounts wait for it too.
    Join(Vec<AccountTag>),
    /// Unbind it.
    Unbind,
}

/// The loop's side.
pub(super) struct CommandQueue {
    to_source: Sender<Commands>,
    shared: Arc<Shared>,
    /// In the order in which each binding was first named.
    kept: BTreeMap<u64, (AmqpBinding, Kept)>,
    place: HashMap<AmqpBinding, u64>,
    next_place: u64,
    stops: bool,
}

impl CommandQueue {
    /// Returns the queue, and the channel that the source takes its commands from.
    pub(super) fn new(waker: LoopWaker) -> (Self, Receiver<Commands>) {
        let (to_source, commands) = crossbeam_channel::unbounded();
        let queue = Self {
            to_source,
            shared: Arc::new(Shared {
                state: AtomicU8::new(TAKEN),
                on_its_way: AtomicUsize::new(0),
                waker,
            }),
            kept: BTreeMap::new(),
            place: HashMap::new(),
            next_place: 0,
            stops: false,
        };
        (queue, commands)
    }

    /// How many commands the source has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.shared.on_its_way.load(Ordering::Relaxed) + self.kept.len() + usize::from(self.stops)
    }

    /// Sends `commands` behind what is kept, if the last list was taken; else keeps them. To be called at the end of
    /// each turn, also with none. O(log kept) a command that has to be kept.
    pub(super) fn tell(&mut self, commands: Vec<ToSource>) {
        let list = if self.kept.is_empty() && !self.stops {
            commands
        } else {
            commands.into_iter().for_each(|command| self.keep(command));
            Vec::new()
        };
        if list.is_empty() && self.kept.is_empty() && !self.stops {
            return;
        }
        let is_free = self
            .shared
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                TAKEN => Some(ON_ITS_WAY),
                _ => Some(MORE_KEPT),
            })
            .is_ok_and(|before| before == TAKEN);
        if !is_free {
            list.into_iter().for_each(|command| self.keep(command));
            return;
        }
        let list = if list.is_empty() {
            self.take_kept()
        } else {
            list
        };
        if list.is_empty() {
            self.shared.state.swap(TAKEN, Ordering::AcqRel);
            return;
        }
        self.shared.on_its_way.store(list.len(), Ordering::Relaxed);
        let shared = self.shared.clone();
        // An error: the source has ended, which the loop learns when it takes messages.
        let _ = self.to_source.send(Commands { list, shared });
    }

    fn keep(&mut self, command: ToSource) {
        match command {
            ToSource::Stop => self.stops = true,
            ToSource::Bind {
                binding,
                ticket,
                account,
            } => {
                let accounts = vec![account];
                let bind = |is_known| Kept::Bind {
                    ticket,
                    accounts,
                    is_known,
                };
                match self.kept_of(&binding) {
                    // An unbind is kept, or the loop has left one out.
                    Some(kept) => *kept = bind(true),
                    None => self.push(binding, bind(false)),
                }
            }
            ToSource::Join { binding, account } => match self.kept_of(&binding) {
                Some(Kept::Bind { accounts, .. } | Kept::Join(accounts)) => {
                    if !accounts.contains(&account) {
                        accounts.push(account);
                    }
                }
                Some(Kept::Unbind) => {}
                None => self.push(binding, Kept::Join(vec![account])),
            },
            ToSource::Unbind(binding) => match self.kept_of(&binding) {
                Some(Kept::Bind {
                    is_known: false, ..
                }) => self.forget(&binding),
                Some(kept) => *kept = Kept::Unbind,
                None => self.push(binding, Kept::Unbind),
            },
        }
    }

    fn kept_of(&mut self, binding: &AmqpBinding) -> Option<&mut Kept> {
        let place = self.place.get(binding)?;
        self.kept.get_mut(place).map(|(_, kept)| kept)
    }

    fn forget(&mut self, binding: &AmqpBinding) {
        if let Some(place) = self.place.remove(binding) {
            self.kept.remove(&place);
        }
    }

    fn push(&mut self, binding: AmqpBinding, kept: Kept) {
        self.place.insert(binding.clone(), self.next_place);
        self.kept.insert(self.next_place, (binding, kept));
        self.next_place += 1;
    }

    fn take_kept(&mut self) -> Vec<ToSource> {
        self.place = HashMap::new();
        let mut list = Vec::with_capacity(self.kept.len());
        for (binding, kept) in std::mem::take(&mut self.kept).into_values() {
            match kept {
                Kept::Unbind => list.push(ToSource::Unbind(binding)),
                Kept::Bind {
                    ticket, accounts, ..
                } => {
                    let mut accounts = accounts.into_iter();
                    let account = accounts.next().unwrap_or_default();
                    list.push(ToSource::Bind {
                        binding: binding.clone(),
                        ticket,
                        account,
                    });
                    list.extend(accounts.map(|account| join(&binding, account)));
                }
                Kept::Join(accounts) => {
                    list.extend(accounts.into_iter().map(|account| join(&binding, account)));
                }
            }
        }
        if std::mem::take(&mut self.stops) {
            list.push(ToSource::Stop);
        }
        list
    }
}

fn join(binding: &AmqpBinding, account: AccountTag) -> ToSource {
    let binding = binding.clone();
    ToSource::Join { binding, account }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binding(number: u8) -> AmqpBinding {
        AmqpBinding {
            exchange: "callevt".into(),
            key: number.to_string().into(),
        }
    }

    fn account(number: u8) -> AccountTag {
        AccountTag::from_number(u32::from(number))
    }

    fn queue() -> (CommandQueue, Receiver<Commands>) {
        CommandQueue::new(LoopWaker::new(|| Ok(())))
    }

    #[test]
    fn what_comes_and_goes_while_the_source_does_not_listen_leaves_nothing_behind() {
        let (mut queue, commands) = queue();
        let (mut ticket, mut most) = (Ticket::default(), 0);
        for number in 0..=255 {
            for _ in 0..100 {
                ticket = ticket.next();
                let binding = binding(number);
                queue.tell(vec![
                    ToSource::Bind {
                        binding: binding.clone(),
                        ticket,
                        account: account(1),
                    },
                    join(&binding, account(2)),
                ]);
                queue.tell(vec![ToSource::Unbind(binding)]);
                most = most.max(queue.waiting());
            }
        }
        // The first turn is on its way, its binding may be known, and one comes and goes.
        assert!(most <= 4, "{most}");
        let first: Vec<_> = commands.try_iter().flatten().collect();
        assert_eq!(first.len(), 2);
        queue.tell(Vec::new());
        let rest: Vec<_> = commands.try_iter().flatten().collect();
        assert_eq!(rest, [ToSource::Unbind(binding(0))]);
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn a_source_that_takes_a_list_wakes_the_loop_only_for_what_is_kept() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let waker = LoopWaker::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let (mut queue, commands) = CommandQueue::new(waker);
        let take = || commands.try_recv().map(|list| list.into_iter().count());
        queue.tell(vec![ToSource::Unbind(binding(1))]);
        assert_eq!((take(), wakes.load(Ordering::Relaxed)), (Ok(1), 0));
        queue.tell(vec![ToSource::Unbind(binding(1))]);
        queue.tell(vec![ToSource::Unbind(binding(2))]);
        queue.tell(vec![ToSource::Unbind(binding(3)), ToSource::Stop]);
        assert_eq!(queue.waiting(), 4);
        assert_eq!((take(), wakes.load(Ordering::Relaxed)), (Ok(1), 1));
        queue.tell(Vec::new());
        assert_eq!((take(), queue.waiting()), (Ok(3), 0));
    }

    /// What a source makes of its commands: the ticket of each binding wanted, and the accounts that wait for it.
    #[derive(Debug, Default, PartialEq)]
    struct Wanted(BTreeMap<AmqpBinding, (Ticket, std::collections::BTreeSet<AccountTag>)>);

    impl Wanted {
        fn apply(&mut self, command: ToSource) {
            match command {
                ToSource::Bind {
                    binding,
                    ticket,
                    account,
                } => {
                    self.0.insert(binding, (ticket, [account].into()));
                }
                ToSource::Join { binding, account } => {
                    if let Some((_, accounts)) = self.0.get_mut(&binding) {
                        accounts.insert(account);
                    }
                }
                ToSource::Unbind(binding) => {
                    self.0.remove(&binding);
                }
                ToSource::Stop => {}
            }
        }
    }

    proptest! {
        #[test]
        fn however_late_a_source_listens_it_hears_what_is_wanted(
            turns in proptest::collection::vec((any::<bool>(), proptest::collection::vec((0..3_u8, 0..4_u8, 1..4_u8), 0..6)), 0..60)
        ) {
            let (mut queue, commands) = queue();
            let (mut said, mut heard) = (Wanted::default(), Wanted::default());
            let mut ticket = Ticket::default();
            for (listens, turn) in turns {
                let mut list = Vec::new();
                for (kind, number, from) in turn {
                    let binding = binding(number);
                    let is_wanted = said.0.contains_key(&binding);
                    let command = || match (kind, is_wanted) {
                        (0, false) => {
                            ticket = ticket.next();
                            Some(ToSource::Bind { binding: binding.clone(), ticket, account: account(from) })
                        }
                        (1, true) => Some(join(&binding, account(from))),
                        (2, true) => Some(ToSource::Unbind(binding.clone())),
                        _ => None,
                    };
                    let mut command = command;
                    if let Some(command) = command() {
                        said.apply(command.clone());
                        list.push(command);
                    }
                }
                queue.tell(list);
                // Of each binding at most a bind and three joins, beside the list that is on its way.
                prop_assert!(queue.kept.len() <= 4);
                if listens {
                    commands.try_iter().flatten().for_each(|command| heard.apply(command));
                }
            }
            for _ in 0..2 {
                queue.tell(Vec::new());
                commands.try_iter().flatten().for_each(|command| heard.apply(command));
            }
            prop_assert_eq!(heard, said);
            prop_assert_eq!(queue.waiting(), 0);
        }
    }
}
