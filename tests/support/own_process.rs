//! Tests that need a process of their own, because they judge or set what belongs to a whole process.

use std::env;
use std::process::Command;

/// Tells the second process that it is the second.
const IS_OWN: &str = "BLACKHOLE_OWN_PROCESS";

/// Runs `body` in a process of its own: the running test, of this name with its modules, is started again by itself.
/// Panics with all that it printed when it fails there.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    if env::var_os(IS_OWN).is_some() {
        return body();
    }
    let output = Command::new(env::current_exe().expect("the system tells it"))
        .args(["--exact", test])
        .env(IS_OWN, "1")
        .output()
        .expect("it runs already");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{test} in a process of its own: {printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
