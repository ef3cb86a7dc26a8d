//! Counts the steps of what must not be quadratic (DESIGN, Nobody's load is another's wait, 5), for tests only: places
//! of the dense storage looked at, AMQP keys rendered, bindings looked up and compared.

use std::cell::Cell;

thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// One step more, of this thread.
pub(crate) fn step() {
    STEPS.set(STEPS.get() + 1);
}

/// The steps that `work` takes.
pub(crate) fn of<T>(work: impl FnOnce() -> T) -> u64 {
    let before = STEPS.get();
    work();
    STEPS.get() - before
}
