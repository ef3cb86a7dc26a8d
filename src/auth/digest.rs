//! A token, or a token and what was asked of it, as 32 bytes, so that caches hold no tokens.

use ring::digest::{Context, SHA256};

use crate::account::AccountId;

/// SHA-256 of what was asked. Nobody can make two questions with one digest, so an answer is never given to another
/// question than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    /// Of a token. Linear in it.
    pub(super) fn of_token(token: &str) -> Self {
        Self::new(b"token\0", &[token.as_bytes()])
    }

    /// Of a token and an account.
    pub(super) fn of_account(token: &str, account: AccountId) -> Self {
        Self::new(b"account\0", &[account.bytes(), token.as_bytes()])
    }

    /// Of the id of a key.
    pub(super) fn of_key(kid: &str) -> Self {
        Self::new(b"key\0", &[kid.as_bytes()])
    }

    /// `kind` keeps questions of different kinds apart; only the last part may have any length.
    fn new(kind: &[u8], parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(kind);
        for part in parts {
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_questions_have_different_digests() {
        let account = |number: u8| AccountId::from_bytes([number; 16]);
        let all = [
            Digest::of_token("a"),
            Digest::of_token("b"),
            Digest::of_key("a"),
            Digest::of_account("a", account(1)),
            Digest::of_account("a", account(2)),
            Digest::of_account("b", account(1)),
        ];
        let distinct: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(Digest::of_token("a"), Digest::of_token("a"));
    }
}
