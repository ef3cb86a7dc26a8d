//! Programs that a test needs and a machine may lack.

use std::path::PathBuf;

/// Folders of programs for administrators, which are not on everybody's `PATH`.
const SBIN: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Where a program is. Leaves the running test out and gives nothing where it is not installed: the test then returns.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(SBIN.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    if found.is_none() {
        support::left_out::leave_out(&format!("{name} is not installed: scripts/setup"));
    }
    found
}
