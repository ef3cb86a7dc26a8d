//! Stub until merged.
use crate::account::AccountId;
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Fingerprint([u8; 16]);
#[derive(Debug)]
pub struct Keys;
#[derive(Debug)]
pub struct Rules { pub issuer: Box<str>, pub require_exp: bool }
#[derive(Debug, Clone)]
pub struct Claims { pub account: AccountId, pub expires: Option<u64>, pub key: Fingerprint }
#[derive(Debug, Clone)]
pub enum Refusal { UnknownKey { kid: Box<str> }, Other }
#[must_use] pub fn has_shape(token: &str) -> bool { token.split('.').count() == 3 }
/// # Errors
/// x
pub fn verify(_t: &str, _k: &Keys, _r: &Rules, _n: u64) -> Result<Claims, Refusal> { Err(Refusal::Other) }
impl Keys {
    #[must_use] pub fn has(&self, _f: Fingerprint) -> bool { true }
    /// # Errors
    /// x
    pub fn with(&self, _kid: &str, _pem: &str) -> Result<Self, ()> { Err(()) }
}
