//! The normaliser of style kazoo (PROTOCOL 5): it writes the body of an event as Kazoo 4 sends it to its clients.
//!
//! It works on the bytes of a body that is known to be JSON, in one pass: no document tree and no recursion.

use crate::json::{is_white, write_text};

/// Headers that are internal to the platform. Style kazoo drops them at the top level (PROTOCOL 5).
const PRIVATE_HEADERS: [&[u8]; 14] = [
    b"Access-Group",
    b"Defer-Response",
    b"Destination-Server",
    b"Geo-Location",
    b"System-Log-ID",
    b"Node",
    b"Server-Queue-ID",
    b"Raw-Headers",
    b"Server-ID",
    b"Request-From-PID",
    b"Reply-To-PID",
    b"AMQP-Broker",
    b"AMQP-Broker-Zone",
    b"Deliver-To-PID",
];

/// Appends `body` in style kazoo: without the private headers of the top level, without members that are `null`, with
/// every key in lower case and `_` for `-`, and without white space between tokens. Values are copied byte for byte.
///
/// `body` must be one valid JSON value. Anything else gives an unspecified output, but never a panic.
pub(super) fn normalise(body: &[u8], out: &mut Vec<u8>) {
    struct Level {
        is_object: bool,
        has_members: bool,
    }
    let mut levels: Vec<Level> = Vec::new();
    let mut at = skip_white(body, 0);
    loop {
        match body.get(at) {
            Some(&open @ (b'{' | b'[')) => {
                out.push(open);
                levels.push(Level {
                    is_object: open == b'{',
                    has_members: false,
                });
                at += 1;
            }
            _ => {
                let end = scalar_end(body, at);
                out.extend_from_slice(body.get(at..end).unwrap_or_default());
                at = end;
            }
        }
        loop {
            at = skip_white(body, at);
            let depth = levels.len();
            let (Some(&byte), Some(level)) = (body.get(at), levels.last_mut()) else {
                return;
            };
            match byte {
                b',' => at += 1,
                b'}' | b']' => {
                    out.push(byte);
                    at += 1;
                    levels.pop();
                }
                _ => {
                    if level.is_object {
                        let key_end = scalar_end(body, at);
                        let key = body
                            .get(at + 1..key_end.saturating_sub(1))
                            .unwrap_or_default();
                        let value = skip_white(body, skip_white(body, key_end) + 1);
                        if body.get(value) == Some(&b'n') || depth == 1 && is_private_header(key) {
                            at = value_end(body, value);
                            continue;
                        }
                        if level.has_members {
                            out.push(b',');
                        }
                        write_normalised_key(key, out);
                        out.push(b':');
                        at = value;
                    } else if level.has_members {
                        out.push(b',');
                    }
                    level.has_members = true;
                    break;
                }
            }
        }
    }
}

/// Writes a key, given without its quotes but with its escapes, lower-cased and with `-` turned into `_`.
fn write_normalised_key(key: &[u8], out: &mut Vec<u8>) {
    let normal = |byte: u8| {
        if byte == b'-' {
            b'_'
        } else {
            byte.to_ascii_lowercase()
        }
    };
    if !key.contains(&b'\\') {
        out.push(b'"');
        out.extend(key.iter().copied().map(normal));
        out.push(b'"');
        return;
    }
    match unescaped(key) {
        Some(text) => {
            let text: String = text
                .chars()
                .map(|c| {
                    if c == '-' {
                        '_'
                    } else {
                        c.to_ascii_lowercase()
                    }
                })
                .collect();
            write_text(out, &text);
        }
        None => {
            out.push(b'"');
            out.extend_from_slice(key);
            out.push(b'"');
        }
    }
}

fn is_private_header(key: &[u8]) -> bool {
    PRIVATE_HEADERS.contains(&key)
        || key.contains(&b'\\')
            && unescaped(key).is_some_and(|text| PRIVATE_HEADERS.contains(&text.as_bytes()))
}

/// The text of a key that is given with its escapes, or `None` for half a surrogate pair: valid JSON, but no text.
fn unescaped(key: &[u8]) -> Option<String> {
    serde_json::from_slice(&[b"\"", key, b"\""].concat()).ok()
}

fn skip_white(body: &[u8], at: usize) -> usize {
    let rest = body.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| is_white(**byte)).count()
}

/// Just behind the string, number or literal that starts at `at`; always beyond `at` unless at the end.
fn scalar_end(body: &[u8], at: usize) -> usize {
    let rest = body.get(at..).unwrap_or_default();
    let Some((b'"', text)) = rest.split_first() else {
        let length = rest
            .iter()
            .skip(1)
            .take_while(|byte| !matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'))
            .count();
        return at + (1 + length).min(rest.len());
    };
    let mut escaped = false;
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + index + 2,
            _ => {}
        }
    }
    body.len()
}

/// Just behind the value, of any kind, that starts at `at`.
fn value_end(body: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = body.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => at = scalar_end(body, at),
        }
        if depth == 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(body: &str) -> String {
        let mut out = Vec::new();
        normalise(body.as_bytes(), &mut out);
        String::from_utf8(out).expect("UTF-8 in, UTF-8 out")
    }

    #[test]
    fn kazoo_normalisation_row_by_row() {
        for (body, expected) in [
            ("{}", "{}"),
            (r#"{"Call-ID":"A-B"}"#, r#"{"call_id":"A-B"}"#),
            (
                r#"{"Custom-Channel-Vars":{"Account-ID":"X"}}"#,
                r#"{"custom_channel_vars":{"account_id":"X"}}"#,
            ),
            (r#"{"A":null}"#, "{}"),
            (
                r#"{"A":null,"B":1,"C":null,"D":2,"E":null}"#,
                r#"{"b":1,"d":2}"#,
            ),
            (
                r#"{"A":{"B":null,"C":[null,{"D":null,"E":1}]}}"#,
                r#"{"a":{"c":[null,{"e":1}]}}"#,
            ),
            (
                r#"{"Node":"x","Server-ID":{"a":[1,"}"]},"X":1}"#,
                r#"{"x":1}"#,
            ),
            (
                r#"{"X":{"Node":"kept below the top"}}"#,
                r#"{"x":{"node":"kept below the top"}}"#,
            ),
            (
                "{ \"A\" : [ 1 , 2.50 , -3e+10 ] ,\n\t\"B\" : \"\\\"q\\\\\" }",
                r#"{"a":[1,2.50,-3e+10],"b":"\"q\\"}"#,
            ),
            (
                r#"{"Big":123456789012345678901234567890,"T":true,"F":false}"#,
                r#"{"big":123456789012345678901234567890,"t":true,"f":false}"#,
            ),
            (r#"{"A\u002dB":"\u002d"}"#, r#"{"a_b":"\u002d"}"#),
            (r#"{"Ärger-Ö":1}"#, r#"{"Ärger_Ö":1}"#),
            (
                r#"{"nullish":"null","n":[[],{}]}"#,
                r#"{"nullish":"null","n":[[],{}]}"#,
            ),
        ] {
            assert_eq!(normalised(body), expected, "{body}");
        }
    }

    #[test]
    fn normalisation_survives_anything() {
        let body = r#"{"A":{"B":[1,null,"x\\"],"Node":null},"Node":[{"a":1}]}"#;
        for start in 0..body.len() {
            for end in start..body.len() {
                normalise(&body.as_bytes()[start..end], &mut Vec::new());
            }
        }
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert_eq!(normalised(&deep), deep);
    }
}
