//! A change of which families are on while the process runs (PROTOCOL 8), and how it is kept over a restart; whoever asks for
//! it. The loop goes on with it in [`super::switching`].
//!
//! ```text
//! begin_switch: the table of families changes, at once
//!    started, or off already -------------+
//!    stopped -> Ending: the sessions -----+-> to be kept: Keeping, on a thread of its own -+-> done
//!               end their subscriptions   +-> not to be kept ------------------------------+
//! ```
//!
//! Invariants: the loop touches no file. While sessions still have subscriptions of a stopped family
//! [`Hub::is_ending_families`](crate::session::hub::Hub::is_ending_families) holds, and they get none of its events.

use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::reread::WakeOnDrop;

/// Keeps over a restart that a module is on or off. Runs on a thread that may wait. The error is for the log.
pub type KeepModule = Arc<dyn Fn(&str, bool) -> Result<(), String> + Send + Sync>;

/// Makes the loop's poll return.
pub type WakeLoop = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The error of a change that should be kept where there is no file to keep it in.
pub const NOWHERE_TO_KEEP: &str = "not kept: the process was started without --config";

/// What the loop needs to answer questions about this host, and to change it.
pub struct HostParts {
    /// Its name.
    pub name: String,
    /// Keeps changes over a restart; `None`: they are not kept.
    pub keep: Option<KeepModule>,
}

/// How changes are kept.
pub(super) struct Keeper {
    /// `None`: they are not.
    pub(super) keep: Option<KeepModule>,
    pub(super) wake: WakeLoop,
}

/// A change under way.
pub(super) struct Switch {
    pub(super) module: Box<str>,
    pub(super) is_start: bool,
    pub(super) persist: bool,
    pub(super) stage: Stage,
}

/// How far a change is.
pub(super) enum Stage {
    /// The sessions from this slot on are to end their subscriptions.
    Ending(u32),
    /// They have, or had none.
    Ended,
    /// A thread writes it down.
    Keeping(Receiver<Result<(), String>>),
}

impl Keeper {
    /// Begins to keep a change.
    pub(super) fn begin(
        &self,
        module: &str,
        is_on: bool,
    ) -> Result<Receiver<Result<(), String>>, String> {
        let keep = self.keep.clone().ok_or(NOWHERE_TO_KEEP)?;
        let (wake, module) = (self.wake.clone(), Box::<str>::from(module));
        let (done, result) = bounded(1);
        let work = move || {
            let waking = WakeOnDrop(move || {
                if let Err(error) = wake() {
                    log::error!("cannot wake the loop: {error}");
                }
            });
            // In this order, even if it panics: hand over, close the channel, wake.
            hand_over(done, keep(&module, is_on));
            drop(waking);
        };
        let thread = thread::Builder::new().name("keep-module".to_owned());
        match thread.spawn(work) {
            Ok(_thread) => Ok(result),
            Err(error) => Err(format!("cannot start a thread: {error}")),
        }
    }
}

fn hand_over(done: Sender<Result<(), String>>, result: Result<(), String>) {
    // The only message, so there is room; the loop may have ended.
    let _ended = done.try_send(result);
}

impl Switch {
    /// Whether it waits for a thread, and not for a turn.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Keeping(_))
    }
}
