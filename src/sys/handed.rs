//! Open descriptors that whoever started this process hands over (sd_listen_fds(3)), each under a name.
//!
//! Invariant: each is owned once: a second call gets none.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A descriptor that was handed over.
#[derive(Debug)]
pub struct Handed {
    /// What it is for (`FileDescriptorName=` of a socket unit); `unknown` when no names were given.
    pub name: String,
    /// The descriptor, which no program started by us inherits.
    pub descriptor: OwnedFd,
}

/// All that were handed over, in their order; none at a second call. To be called before this process opens a
/// descriptor that may get one of their numbers instead, should the environment lie.
///
/// # Errors
/// The environment names descriptors that are not open, or other names than there are descriptors.
pub fn take_handed() -> io::Result<Vec<Handed>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let named = sd_notify::listen_fds_with_names()?;
    let own = |(number, name)| {
        #[allow(
            unsafe_code,
            reason = "a descriptor that comes from outside has no other way in"
        )]
        // SAFETY: it is open, or `listen_fds_with_names` had failed to change its flags; and nothing else in this process
        // owns it: it was there before the process began, in a place that the environment keeps for us, and `TAKEN` lets
        // nobody come here twice.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        Handed { name, descriptor }
    };
    Ok(named.map(own).collect())
}
