//! The answers of an embedded source to the loop's commands.
//!
//! Invariant: every `Bind` that waits is answered before a call returns, all of them in one [`FromSource::Bound`].

use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, TryRecvError};

use crate::handoff::{Commands, FromSource, LoopGone, SourceEnd, ToSource};
use crate::routing::amqp_binding::Asked;

/// The source is to end: the loop said [`ToSource::Stop`], or is gone.
#[derive(Debug)]
pub(super) struct Ended;

impl From<LoopGone> for Ended {
    fn from(LoopGone: LoopGone) -> Self {
        Self
    }
}

/// What a source found among its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// No `Bind`.
    Nothing,
    /// At least one `Bind`, answered.
    Bind,
}

/// Answers every command that waits, without waiting for more.
pub(super) fn answer_waiting(source: &SourceEnd) -> Result<Heard, Ended> {
    match source.commands.try_recv() {
        Ok(first) => answer(source, first),
        Err(TryRecvError::Empty) => Ok(Heard::Nothing),
        Err(TryRecvError::Disconnected) => Err(Ended),
    }
}

/// Answers commands as they come, until `deadline`.
pub(super) fn answer_until(source: &SourceEnd, deadline: Instant) -> Result<Heard, Ended> {
    let mut heard = Heard::Nothing;
    loop {
        match source.commands.recv_deadline(deadline) {
            Ok(first) => {
                if answer(source, first)? == Heard::Bind {
                    heard = Heard::Bind;
                }
            }
            Err(RecvTimeoutError::Timeout) => return Ok(heard),
            Err(RecvTimeoutError::Disconnected) => return Err(Ended),
        }
    }
}

/// Answers `first` and whatever waits behind it, all `Bind`s in one [`FromSource::Bound`].
pub(super) fn answer(source: &SourceEnd, first: Commands) -> Result<Heard, Ended> {
    let mut bound = Vec::new();
    let all = std::iter::once(first).chain(source.commands.try_iter());
    for command in all.flatten() {
        match command {
            ToSource::Bind {
                binding, ticket, ..
            } => bound.push(Asked { binding, ticket }),
            ToSource::Join { .. } | ToSource::Unbind(_) => {}
            ToSource::Stop => return Err(Ended),
        }
    }
    if bound.is_empty() {
        return Ok(Heard::Nothing);
    }
    source.send(FromSource::Bound(bound))?;
    Ok(Heard::Bind)
}
