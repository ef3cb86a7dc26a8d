//! What a token says once its signature is checked (PROTOCOL 7), and what it must say.

use std::time::Duration;

use serde::Deserialize;

use super::compact::{members, text};
use super::key::Fingerprint;
use super::refusal::Refusal;
use crate::account::AccountId;
use crate::limits::JWT_LEEWAY;

/// What is asked of claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What `iss` must be, to the letter.
    pub issuer: Box<str>,
    /// Whether a token without `exp` is refused.
    pub require_exp: bool,
    /// How far the clocks may be apart: `exp` and `nbf` are taken as that much later and earlier.
    pub leeway: Duration,
}

impl Rules {
    /// Rules with the leeway of [`JWT_LEEWAY`].
    #[must_use]
    pub fn new(issuer: &str, require_exp: bool) -> Self {
        Self {
            issuer: issuer.into(),
            require_exp,
            leeway: JWT_LEEWAY,
        }
    }
}

/// What a good token gives the right to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whom it speaks for.
    pub account: AccountId,
    /// From when on it is good no longer: `exp` plus leeway, in Unix seconds. `None`: never.
    pub expires: Option<u64>,
    /// The key that signed it: good as long as [`Keys::has`](super::Keys::has) it.
    pub key: Fingerprint,
}

impl Claims {
    /// Reads the claims of a token that `key` has signed. Claims that are not named here are passed over.
    pub(super) fn read(
        json: &[u8],
        key: Fingerprint,
        rules: &Rules,
        unix_now: u64,
    ) -> Result<Self, Refusal> {
        let members = members(json).ok_or(Refusal::Claims)?;
        let (mut issuer, mut account, mut exp, mut nbf) = (None, None, None, None);
        for (name, value) in &members.0 {
            let seconds = || u64::deserialize(*value).map_err(|_| Refusal::Claims);
            match name.as_str() {
                "iss" => issuer = Some(text(value).ok_or(Refusal::Claims)?),
                "account_id" => account = Some(text(value).ok_or(Refusal::Claims)?),
                "exp" => exp = Some(seconds()?),
                "nbf" => nbf = Some(seconds()?),
                _ => {}
            }
        }
        if issuer.as_deref() != Some(&*rules.issuer) {
            return Err(Refusal::Issuer);
        }
        let account = account
            .and_then(|account| AccountId::parse(&account))
            .ok_or(Refusal::Account)?;
        if exp.is_none() && rules.require_exp {
            return Err(Refusal::NoExpiry);
        }
        let leeway = rules.leeway.as_secs();
        let expires = exp.map(|exp| exp.saturating_add(leeway));
        if expires.is_some_and(|expires| unix_now >= expires) {
            return Err(Refusal::Expired);
        }
        if nbf.is_some_and(|nbf| unix_now.saturating_add(leeway) < nbf) {
            return Err(Refusal::NotYetValid);
        }
        Ok(Self {
            account,
            expires,
            key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";
    const NOW: u64 = 1_700_000_000;

    fn read(json: &str, rules: &Rules) -> Result<Option<u64>, Refusal> {
        let claims = Claims::read(json.as_bytes(), Fingerprint::of(&[], &[]), rules, NOW)?;
        assert_eq!(claims.account.to_string(), ACCOUNT);
        Ok(claims.expires)
    }

    /// Claims of the right issuer and an account, and `more`.
    fn with(more: &str) -> String {
        format!(r#"{{"iss":"kazoo","account_id":"{ACCOUNT}"{more}}}"#)
    }

    #[test]
    fn claims_must_be_there_once_and_of_their_type() {
        let rules = Rules::new("kazoo", false);
        for json in [
            with(""),
            with(r#","owner_id":null,"method":[1],"iat":1e99,"aud":"x","identity_sig":"x""#),
            with("").replace(ACCOUNT, &ACCOUNT.to_uppercase()),
            with(r#","nested":{"iss":"a","exp":1,"exp":2}"#),
        ] {
            assert_eq!(read(&json, &rules), Ok(None), "{json}");
        }
        for more in [
            r#","exp":"1700000060""#,
            r#","exp":null"#,
            r#","exp":1700000060.5"#,
            r#","exp":1.8e9"#,
            r#","exp":-1"#,
            r#","exp":18446744073709551616"#,
            r#","exp":1e999"#,
            r#","exp":true"#,
            r#","exp":[1700000060]"#,
            r#","nbf":"0""#,
            r#","nbf":-1"#,
            r#","exp":1700000060,"exp":1700000060"#,
            r#","exp":1700000060,"\u0065xp":1900000000"#,
            r#","iss":"kazoo""#,
            r#","owner_id":"a","owner_id":"b""#,
        ] {
            assert_eq!(read(&with(more), &rules), Err(Refusal::Claims), "{more}");
        }
        for json in [
            "",
            "{}x",
            "[]",
            "null",
            "1",
            r#"{"iss":1}"#,
            r#"{"iss":"kazoo","account_id":7}"#,
        ] {
            assert_eq!(read(json, &rules), Err(Refusal::Claims), "{json}");
        }
        for json in [
            "{}",
            &with("").replace("kazoo", "Kazoo"),
            &with("").replace("kazoo", ""),
            r#"{"account_id":"x"}"#,
        ] {
            assert_eq!(read(json, &rules), Err(Refusal::Issuer), "{json}");
        }
        for account in [
            "",
            "*",
            "4b8c",
            &format!("{ACCOUNT}0"),
            "account/4b/8c/6fec4b2597882c0390",
        ] {
            let json = with("").replace(ACCOUNT, account);
            assert_eq!(read(&json, &rules), Err(Refusal::Account), "{json}");
        }
        assert_eq!(read(r#"{"iss":"kazoo"}"#, &rules), Err(Refusal::Account));
        assert_eq!(
            read(
                &with("").replace("kazoo", "other"),
                &Rules::new("other", false)
            ),
            Ok(None)
        );
        assert_eq!(
            Claims::read(
                b"{\"iss\":\"\xff\"}",
                Fingerprint::of(&[], &[]),
                &rules,
                NOW
            ),
            Err(Refusal::Claims)
        );
    }

    #[test]
    fn a_token_is_good_from_nbf_to_exp_give_or_take_the_leeway() {
        let rules = Rules::new("kazoo", false);
        for (exp, expected) in [
            (NOW + 60, Ok(Some(NOW + 90))),
            (NOW - 29, Ok(Some(NOW + 1))),
            (NOW - 30, Err(Refusal::Expired)),
            (0, Err(Refusal::Expired)),
            (u64::MAX, Ok(Some(u64::MAX))),
        ] {
            assert_eq!(
                read(&with(&format!(r#","exp":{exp}"#)), &rules),
                expected,
                "{exp}"
            );
        }
        for (nbf, expected) in [
            (0, Ok(None)),
            (NOW + 30, Ok(None)),
            (NOW + 31, Err(Refusal::NotYetValid)),
            (u64::MAX, Err(Refusal::NotYetValid)),
        ] {
            assert_eq!(
                read(&with(&format!(r#","nbf":{nbf}"#)), &rules),
                expected,
                "{nbf}"
            );
        }
        let strict = Rules::new("kazoo", true);
        assert_eq!(read(&with(""), &strict), Err(Refusal::NoExpiry));
        assert_eq!(
            read(&with(r#","exp":1900000000"#), &strict),
            Ok(Some(1_900_000_030))
        );
    }
}
