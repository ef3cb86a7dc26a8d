//! The end: connections that stand are closed as websockets are, so that servers do not count them as lost. The process
//! waits for that, but not long.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Shared by all sessions and the thread that ends them.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    state: Mutex<State>,
    fewer: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_over: bool,
    /// Connections that stand.
    connections: usize,
}

/// Stands for a connection, until it is dropped.
pub(super) struct Standing<'a>(&'a Farewell);

impl Farewell {
    /// Whether the sessions are to end.
    pub(super) fn is_over(&self) -> bool {
        self.with(|state| state.is_over)
    }

    /// Counts a connection.
    pub(super) fn enter(&self) -> Standing<'_> {
        self.with(|state| state.connections += 1);
        Standing(self)
    }

    /// Tells the sessions to end, and waits until no connection stands, for `patience` at most.
    pub(super) fn say(&self, patience: Duration) {
        self.with(|state| state.is_over = true);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = |state: &mut State| state.connections > 0;
        drop(self.fewer.wait_timeout_while(state, patience, stands));
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // Nothing panics while it holds the lock.
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.with(|state| state.connections -= 1);
        self.0.fewer.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Instant;

    #[test]
    fn it_waits_for_the_connections_that_stand_and_not_longer_than_it_may() {
        let farewell = Farewell::default();
        let standing = farewell.enter();
        assert!(!farewell.is_over());
        thread::scope(|scope| {
            scope.spawn(|| {
                while !farewell.is_over() {
                    thread::yield_now();
                }
                drop(standing);
            });
            let begun = Instant::now();
            farewell.say(Duration::from_secs(20));
            assert!(begun.elapsed() < Duration::from_secs(10));
        });
        let _stuck = farewell.enter();
        farewell.say(Duration::from_millis(1));
    }
}
