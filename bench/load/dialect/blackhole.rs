//! This project's own protocol: replies and notices (PROTOCOL 3 and 5).

use serde::Deserialize;

use super::Meaning;

/// What of a reply or a notice is of interest.
#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Message {
    Reply {
        request_id: Option<String>,
        status: String,
        data: Option<ReplyData>,
    },
    Notice {
        name: String,
        data: Option<NoticeData>,
    },
}

#[derive(Deserialize)]
struct ReplyData {
    errors: Option<Vec<String>>,
    response: Option<String>,
}

#[derive(Deserialize)]
struct NoticeData {
    dropped: Option<u64>,
}

/// The ping command that was sent at `sent`: the request id comes back with its reply.
pub(super) fn ping(sent: u64) -> String {
    format!(r#"{{"action":"ping","request_id":"{sent}"}}"#)
}

fn pong(request_id: Option<&str>) -> Meaning {
    match request_id.and_then(|id| id.parse().ok()) {
        Some(sent) => Meaning::Pong { sent },
        None => Meaning::Refused("a pong without the time of its ping".into()),
    }
}

/// What a text that is no event means.
pub(super) fn meaning(text: &[u8]) -> Meaning {
    match serde_json::from_slice(text) {
        Ok(Message::Notice { name, data }) if name == "gap" => Meaning::Gap {
            dropped: data.and_then(|data| data.dropped).unwrap_or(0),
        },
        Ok(Message::Notice { .. }) => Meaning::Nothing,
        Ok(Message::Reply {
            request_id,
            status,
            data,
        }) if status == "success" => match data.and_then(|data| data.response) {
            Some(_) => pong(request_id.as_deref()),
            None => Meaning::Granted,
        },
        Ok(Message::Reply { data, .. }) => {
            let errors = data.and_then(|data| data.errors).unwrap_or_default();
            Meaning::Refused(format!("refused: {}", errors.join(", ")))
        }
        Err(_) => Meaning::Refused("a text that is no reply, notice or event".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_to_a_ping_tells_when_that_was_sent_and_grants_nothing() {
        let reply = |id: &str, data: &str| {
            let reply = format!(
                r#"{{"action":"reply","request_id":"{id}","status":"success","data":{data}}}"#
            );
            meaning(reply.as_bytes())
        };
        let pong = r#"{"response":"pong"}"#;
        assert_eq!(reply("1200", pong), Meaning::Pong { sent: 1200 });
        assert!(matches!(reply("x", pong), Meaning::Refused(_)));
        assert_eq!(reply("1200", r#"{"subscribed":["x"]}"#), Meaning::Granted);
        let ping: serde_json::Value = serde_json::from_str(&ping(1200)).expect("JSON");
        assert_eq!(ping["request_id"], "1200");
    }
}
