//! The end of a call that hangs, from another thread. The AMQP client's calls have no timeouts, so shutting its socket
//! down is the only way (AMQP rail 4).
//!
//! Invariant: at most one socket is kept, that of the latest try to connect.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shared by the AMQP threads and the one that ends them.
#[derive(Debug, Default)]
pub(super) struct Abort {
    stopping: AtomicBool,
    armed: Mutex<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    attempt: Attempt,
    socket: Option<TcpStream>,
}

/// One try to connect. A later try makes it void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attempt(u64);

impl Abort {
    /// A new try to connect begins. The try before it, whose thread may still hang in a name resolution, is void.
    pub(super) fn begin(&self) -> Attempt {
        let mut armed = self.lock();
        armed.attempt.0 += 1;
        armed.attempt
    }

    /// Keeps a clone of the socket now in use.
    ///
    /// # Errors
    /// The socket cannot be cloned, the process is stopping, or the attempt is void.
    pub(super) fn arm(&self, attempt: Attempt, socket: &TcpStream) -> io::Result<()> {
        let clone = socket.try_clone()?;
        let mut armed = self.lock();
        if armed.attempt != attempt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        armed.socket = Some(clone);
        drop(armed);
        // Read only now that the clone is in place: a stop that came earlier may have found no socket to cut.
        if self.is_stopping() {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }

    /// Shuts down the socket now in use, in both directions. Every call on it fails soon after.
    pub(super) fn cut(&self) {
        if let Some(socket) = self.lock().socket.take() {
            // An error: it is not connected any more, so nothing hangs on it.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Every wait for the loop, and every try to connect, gives up.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
