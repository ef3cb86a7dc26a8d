//! Numbers on the command lines of the benches.

/// Parses a positive number, which may have a fraction.
///
/// # Errors
/// The text is none; the error says what is expected.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && number > 0.0 => Ok(number),
        _ => Err("a positive number is expected".into()),
    }
}
