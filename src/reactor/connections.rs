//! The table of connections. The slab owns them; [`ConnId`]s refer to them.
//!
//! Invariants: a connection that had a subscription leaves the table only in the last step of the turn, so the slot that an
//! earlier step named keeps its connection for the rest of the turn. A `generation` repeats only after 2^24 connections.

use slab::Slab;

use crate::session::Session;
use crate::session::id::ConnId;

/// One connection: a session, its socket, and the lists of the loop that it is on.
#[derive(Debug)]
pub struct Connection<S> {
    /// The only way to its peer.
    pub socket: S,
    generation: Generation,
    /// The lists of the loop that it is on.
    pub listed: Listed,
    /// Its session.
    pub session: Session,
}

bitflags::bitflags! {
    /// The lists of the loop that a connection is on; each list names it at most once.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Listed: u8 {
        /// Frames wait and the socket is not known to be full.
        const FLUSH = 1;
        /// Bytes may wait for which the budget of the turn was too small.
        const REREAD = 1 << 1;
        /// The session did not want the bytes that may wait. It is put on the reread list when it does.
        const PARKED = 1 << 2;
        /// The peer closed its side. No list: it makes the reads go on to the end.
        const HAS_ENDED = 1 << 3;
        /// A check of its full socket is due within a quarter of `send_timeout_ms`.
        const SEND_TIMER = 1 << 4;
        /// It has ended, and leaves the table in step 6.
        const REAP = 1 << 5;
        /// It was read and is still in its handshake: it may have to make room when the process is full.
        const UNFINISHED = 1 << 6;
        /// It came by the admin address. No list of the loop's: it is in `admin::connections`.
        const ADMIN = 1 << 7;
    }
}

impl Listed {
    /// Marks it as on `list`. True: it was not, and must be put there.
    pub fn enter(&mut self, list: Self) -> bool {
        let is_new = !self.contains(list);
        self.insert(list);
        is_new
    }
}

/// [`ConnId::generation`], in 3 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Generation([u8; 3]);

impl Generation {
    fn next(self) -> Self {
        let [low, middle, high, _] = self.get().wrapping_add(1).to_le_bytes();
        Self([low, middle, high])
    }

    fn get(self) -> u32 {
        let Self([low, middle, high]) = self;
        u32::from_le_bytes([low, middle, high, 0])
    }
}

// The largest part of what an idle session costs. In a debug build mio keeps the id of its poll in each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Connection<mio::net::TcpStream>>() <= 64);

/// All connections.
#[derive(Debug)]
pub struct Connections<S> {
    slab: Slab<Connection<S>>,
    next_generation: Generation,
}

impl<S> Default for Connections<S> {
    fn default() -> Self {
        Self {
            slab: Slab::new(),
            next_generation: Generation::default(),
        }
    }
}

impl<S> Connections<S> {
    /// Takes a connection in; O(1) amortised.
    ///
    /// # Panics
    /// Beyond 2^32 connections: no process has so many descriptors.
    pub fn insert(&mut self, socket: S, session: Session) -> ConnId {
        let generation = self.next_generation;
        self.next_generation = generation.next();
        let slot = self.slab.insert(Connection {
            socket,
            generation,
            listed: Listed::default(),
            session,
        });
        ConnId {
            slot: u32::try_from(slot).expect("fewer than 2^32 descriptors"),
            generation: generation.get(),
        }
    }

    /// The connection of that name, unless it is gone.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Connection<S>> {
        self.slab
            .get_mut(id.slot as usize)
            .filter(|connection| connection.generation.get() == id.generation)
    }

    /// The connection of that name, unless it is gone.
    #[must_use]
    pub fn get(&self, id: ConnId) -> Option<&Connection<S>> {
        self.slab
            .get(id.slot as usize)
            .filter(|connection| connection.generation.get() == id.generation)
    }

    /// The connection in that slot, with its name.
    pub fn at_slot(&mut self, slot: u32) -> Option<(ConnId, &mut Connection<S>)> {
        let connection = self.slab.get_mut(slot as usize)?;
        Some((
            ConnId {
                slot,
                generation: connection.generation.get(),
            },
            connection,
        ))
    }

    /// Takes a connection out.
    pub fn remove(&mut self, id: ConnId) -> Option<Connection<S>> {
        self.get(id)?;
        self.slab.try_remove(id.slot as usize)
    }

    /// As [`Connections::at_slot`], to look at.
    #[must_use]
    pub fn peek(&self, slot: u32) -> Option<(ConnId, &Connection<S>)> {
        let connection = self.slab.get(slot as usize)?;
        let generation = connection.generation.get();
        Some((ConnId { slot, generation }, connection))
    }

    /// All connections in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection<S>)> {
        self.slab.iter().map(|(slot, connection)| {
            (
                ConnId {
                    slot: slot as u32,
                    generation: connection.generation.get(),
                },
                connection,
            )
        })
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// How many slots the table has room for: no connection has a slot beyond them.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slab.capacity() as u32
    }

    /// Gives the memory of the table back if it is empty.
    pub fn shrink_if_empty(&mut self) {
        if self.slab.is_empty() && self.slab.capacity() > 0 {
            self.slab = Slab::new();
        }
    }
}
