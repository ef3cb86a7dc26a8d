//! How another thread ends what hangs: the AMQP client's calls have no timeouts, so shutting its socket down is the
//! only way (AMQP rail 4).

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Shared by the AMQP threads and whoever ends them.
#[derive(Debug, Default)]
pub(super) struct Abort {
    stopping: AtomicBool,
    socket: Mutex<Option<TcpStream>>,
}

impl Abort {
    /// Keeps a clone of the socket now in use.
    ///
    /// # Errors
    /// The socket cannot be cloned, or the process is stopping.
    pub(super) fn arm(&self, socket: &TcpStream) -> io::Result<()> {
        let clone = socket.try_clone()?;
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(clone);
        // Read after the clone is in place: whoever set it earlier may have found nothing to cut.
        if self.is_stopping() {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }

    /// Shuts the socket now in use down, both ways: every call on it fails soon after.
    pub(super) fn cut(&self) {
        if let Some(socket) = self
            .socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            // Not connected any more: then nothing hangs on it.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whatever waits for the loop, or is about to connect, gives up.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
