//! The programs that one build leaves side by side.

use std::io;
use std::path::PathBuf;

/// The program `name` of the build that the running program is of.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: it was not built, with how to build it as the text.
pub fn beside(name: &str, package: &str) -> io::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    if program.exists() {
        return Ok(program);
    }
    let text = format!(
        "{} is not built: cargo build --release --package {package}",
        program.display()
    );
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}
