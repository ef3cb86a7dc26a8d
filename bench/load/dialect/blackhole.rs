//! This project's own protocol: replies and notices (PROTOCOL 3 and 5).

use serde::Deserialize;

use super::Meaning;

/// What of a reply or a notice is of interest.
#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Message {
    Reply {
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
}

#[derive(Deserialize)]
struct NoticeData {
    dropped: Option<u64>,
}

/// What a text that is no event means.
pub(super) fn meaning(text: &[u8]) -> Meaning {
    match serde_json::from_slice(text) {
        Ok(Message::Notice { name, data }) if name == "gap" => Meaning::Gap {
            dropped: data.and_then(|data| data.dropped).unwrap_or(0),
        },
        Ok(Message::Notice { .. }) => Meaning::Nothing,
        Ok(Message::Reply { status, .. }) if status == "success" => Meaning::Granted,
        Ok(Message::Reply { data, .. }) => {
            let errors = data.and_then(|data| data.errors).unwrap_or_default();
            Meaning::Refused(format!("refused: {}", errors.join(", ")))
        }
        Err(_) => Meaning::Refused("a text that is no reply, notice or event".into()),
    }
}
