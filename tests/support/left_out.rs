//! Tests that leave themselves out where what they need is not installed.

use std::fmt::Display;
use std::io::{self, Write};
use std::{env, thread};

/// Set by `scripts/test`, which installs all that is needed: then nothing may be left out.
const NOTHING: &str = "BLACKHOLE_LEAVE_NOTHING_OUT";

/// Says on stderr that the running test is left out, and why. Panics where nothing may be.
pub fn leave_out(reason: &dyn Display) {
    assert!(env::var_os(NOTHING).is_none(), "{reason}");
    tell("left out", reason);
}

/// Says on stderr what becomes of the running test, and why.
pub(crate) fn tell(what: &str, reason: &dyn Display) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not by a macro, whose lines the harness shows of failed tests only.
    let _ = writeln!(io::stderr(), "{what}: {test}: {reason}");
}
