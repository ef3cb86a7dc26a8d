//! The platform's control over AMQP as JSON (PROTOCOL 8, its first two points): requests read, answers written.
//!
//! | request | exchange and routing key | answer's `Event-Name` |
//! |---|---|---|
//! | which sessions there are | `sysconf`, `websockets.get` | `get_resp` |
//! | start or stop a family | `kapps`, `ws.module_req` | `module_resp` |
//!
//! Invariants: an answer never holds a token or an account id. A request is understood as a whole, or it is a [`Refusal`],
//! which holds no word of it. The address of an answer fits in AMQP's short strings (AMQP rail 2).

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::account::AccountId;
use crate::event::age::GREGORIAN_UNIX_SECONDS;
use crate::json::write_text;

use super::page::write_texts;

/// The exchange and routing key of a request for sessions.
pub const SESSIONS_ADDRESS: (&str, &str) = ("sysconf", "websockets.get");
/// The exchange and routing key of a request to start or stop a family.
pub const MODULE_ADDRESS: (&str, &str) = ("kapps", "ws.module_req");

/// Longest routing key of an answer, and longest process id in its header: AMQP's short string.
const SHORT_BYTES_MAX: usize = 255;

const APP_NAME: &str = "blackhole";
const CATEGORY: &str = "websockets";

/// A request of the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the answer goes.
    pub reply_to: ReplyTo,
    /// `Msg-ID`, which the answer repeats.
    pub msg_id: Option<Box<str>>,
    /// What is asked.
    pub question: Question,
}

/// Where an answer goes: `Server-ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The routing key, at most 255 bytes.
    pub routing_key: Box<str>,
    /// The header `Deliver-To-PID`, of the platform's own form `pid://PID/QUEUE`.
    pub pid: Option<Box<str>>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which sessions there are.
    Sessions(Whose),
    /// To start or stop a family.
    Module(ModuleChange),
}

/// Which sessions are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Those of this account only. `Some(None)`: of an account that cannot be, for its id is none.
    pub account: Option<Option<AccountId>>,
    /// The one of this id only.
    pub socket: Option<Box<str>>,
}

/// To start or stop the families of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleChange {
    /// The platform's name of it, such as `bh_call`.
    pub module: Box<str>,
    /// Start; else stop.
    pub is_start: bool,
    /// Keep it so over a restart. True when the request does not say, as on the platform.
    pub persist: bool,
}

/// Why there is no answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a JSON object.
    #[error("not a JSON object")]
    NotJson,
    /// From another exchange, or with another routing key.
    #[error("neither websockets.get nor ws.module_req")]
    Address,
    /// A field that is missing or of the wrong kind; its name.
    #[error("missing or wrong {0}")]
    Field(&'static str),
    /// No `Server-ID`.
    #[error("no Server-ID")]
    NoServerId,
    /// A `Server-ID` that no answer can be sent to.
    #[error("a Server-ID that is empty, malformed or longer than 255 bytes")]
    ServerId,
}

/// Reads a request that came by this exchange and routing key. Linear in its body.
///
/// # Errors
/// [`Refusal`]: it gets no answer.
pub fn read(exchange: &str, routing_key: &str, body: &[u8]) -> Result<Request, Refusal> {
    let address = (exchange, routing_key);
    let name = match address {
        SESSIONS_ADDRESS => "get_req",
        MODULE_ADDRESS => "module_req",
        _ => return Err(Refusal::Address),
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return Err(Refusal::NotJson);
    };
    for (field, expected) in [("Event-Category", CATEGORY), ("Event-Name", name)] {
        if text(&fields, field)?.is_some_and(|found| found != expected) {
            return Err(Refusal::Field(field));
        }
    }
    let server_id = text(&fields, "Server-ID")?.ok_or(Refusal::NoServerId)?;
    Ok(Request {
        reply_to: ReplyTo::parse(server_id).ok_or(Refusal::ServerId)?,
        msg_id: text(&fields, "Msg-ID")?.map(Box::from),
        question: match address {
            SESSIONS_ADDRESS => Question::Sessions(read_whose(&fields)?),
            _ => Question::Module(read_change(&fields)?),
        },
    })
}

fn read_whose(fields: &Map<String, Value>) -> Result<Whose, Refusal> {
    let account = text(fields, "Account-ID")?;
    let socket = text(fields, "Socket-ID")?;
    if account.is_none() && socket.is_none() {
        return Err(Refusal::Field("Account-ID"));
    }
    Ok(Whose {
        account: account.map(AccountId::parse),
        socket: socket.map(Box::from),
    })
}

fn read_change(fields: &Map<String, Value>) -> Result<ModuleChange, Refusal> {
    let wrong = |field| Refusal::Field(field);
    Ok(ModuleChange {
        module: text(fields, "Module")?.ok_or(wrong("Module"))?.into(),
        is_start: match text(fields, "Action")? {
            Some("start") => true,
            Some("stop") => false,
            Some(_) | None => return Err(wrong("Action")),
        },
        persist: match fields.get("Persist") {
            None | Some(Value::Null) => true,
            // The platform's tools may send it as a text.
            Some(Value::String(text)) if text == "true" => true,
            Some(Value::String(text)) if text == "false" => false,
            Some(value) => value.as_bool().ok_or(wrong("Persist"))?,
        },
    })
}

/// A field that is a text; `null` and an empty text are none.
fn text<'f>(
    fields: &'f Map<String, Value>,
    name: &'static str,
) -> Result<Option<&'f str>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(&**text).filter(|text| !text.is_empty())),
        Some(_) => Err(Refusal::Field(name)),
    }
}

impl ReplyTo {
    /// Reads a `Server-ID`: `pid://PID/QUEUE`, or a routing key.
    fn parse(server_id: &str) -> Option<Self> {
        let (pid, routing_key) = match server_id.strip_prefix("pid://") {
            Some(rest) => {
                let (pid, queue) = rest.split_once('/')?;
                (Some(pid), queue)
            }
            None => (None, server_id),
        };
        let fits = |text: &str| {
            (1..=SHORT_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
        };
        (fits(routing_key) && pid.is_none_or(fits)).then(|| Self {
            routing_key: routing_key.into(),
            pid: pid.map(Box::from),
        })
    }
}

/// What is told of one session.
#[derive(Debug)]
pub struct SessionFacts<'a, B> {
    /// `IP:PORT` of its peer.
    pub id: &'a str,
    /// The IP of its peer.
    pub source: &'a str,
    /// When it came, in Unix seconds.
    pub unix: u64,
    /// The name that its client gave it.
    pub name: Option<&'a str>,
    /// The metadata that its client gave it, as JSON.
    pub metadata: Option<&'a str>,
    /// Its client bindings.
    pub bindings: B,
}

/// Appends the object of one session, without a comma before it. `destination`: the name of this host. Linear in what it
/// writes.
pub fn write_session<'b, B: IntoIterator<Item = &'b str>>(
    out: &mut Vec<u8>,
    facts: SessionFacts<'_, B>,
    destination: &str,
) {
    out.extend_from_slice(br#"{"bindings":"#);
    write_texts(out, facts.bindings);
    out.extend_from_slice(br#","websocket_session_id":"#);
    write_text(out, facts.id);
    let timestamp = facts.unix.saturating_add(GREGORIAN_UNIX_SECONDS);
    out.extend_from_slice(format!(r#","timestamp":{timestamp}"#).as_bytes());
    if let Some(name) = facts.name {
        out.extend_from_slice(br#","name":"#);
        write_text(out, name);
    }
    if let Some(metadata) = facts.metadata {
        out.extend_from_slice(br#","metadata":"#);
        out.extend_from_slice(metadata.as_bytes());
    }
    out.extend_from_slice(br#","destination":"#);
    write_text(out, destination);
    out.extend_from_slice(br#","source":"#);
    write_text(out, facts.source);
    out.push(b'}');
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The sessions, as the objects that [`write_session`] writes with commas between them.
    Sessions(Vec<u8>),
    /// What became of a change.
    Module(ModuleReply),
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleReply {
    /// It is kept over a restart.
    pub persisted: bool,
    /// The families are on now, for they were to be started.
    pub started: bool,
    /// Why it did not come about, or is not kept.
    pub error: Option<Cow<'static, str>>,
}

/// An answer on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where it goes.
    pub reply_to: ReplyTo,
    /// The `Msg-ID` of its request.
    pub msg_id: Option<Box<str>>,
    /// What it says.
    pub reply: Reply,
}

impl Answer {
    /// The whole message, as JSON. `node`: what this process is called. Linear in the answer.
    #[must_use]
    pub fn to_json(&self, node: &str) -> Vec<u8> {
        let mut out = Vec::new();
        if let Reply::Sessions(data) = &self.reply {
            // With room for the headers.
            out.reserve_exact(data.len() + 1024);
        }
        let name = match &self.reply {
            Reply::Sessions(_) => "get_resp",
            Reply::Module(_) => "module_resp",
        };
        out.extend_from_slice(br#"{"Event-Category":"#);
        write_text(&mut out, CATEGORY);
        for (key, value) in [
            ("Event-Name", Some(name)),
            ("Msg-ID", self.msg_id.as_deref()),
            ("App-Name", Some(APP_NAME)),
            ("App-Version", Some(env!("CARGO_PKG_VERSION"))),
            ("Node", Some(node)),
        ] {
            if let Some(value) = value {
                write_key(&mut out, key);
                write_text(&mut out, value);
            }
        }
        match &self.reply {
            Reply::Sessions(data) => {
                write_key(&mut out, "Data");
                out.push(b'[');
                out.extend_from_slice(data);
                out.push(b']');
            }
            Reply::Module(ModuleReply {
                persisted,
                started,
                error,
            }) => {
                for (key, value) in [("Persisted", persisted), ("Started", started)] {
                    write_key(&mut out, key);
                    out.extend_from_slice(value.to_string().as_bytes());
                }
                if let Some(error) = error {
                    write_key(&mut out, "Error");
                    write_text(&mut out, error);
                }
            }
        }
        out.push(b'}');
        out
    }
}

fn write_key(out: &mut Vec<u8>, key: &str) {
    out.push(b',');
    write_text(out, key);
    out.push(b':');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::strategy::Strategy as _;
    use serde_json::json;

    const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";

    fn read_get(body: &Value) -> Result<Request, Refusal> {
        read("sysconf", "websockets.get", body.to_string().as_bytes())
    }

    fn read_module(body: &Value) -> Result<Request, Refusal> {
        read("kapps", "ws.module_req", body.to_string().as_bytes())
    }

    /// What the platform's REST API sends.
    fn get(more: Value) -> Value {
        let mut message = json!({
            "Event-Category": "websockets", "Event-Name": "get_req", "Account-ID": ACCOUNT, "Auth-Account-ID": ACCOUNT,
            "Msg-ID": "m-1", "Server-ID": "pid://<0.1234.0>/amqp_queue", "App-Name": "crossbar", "App-Version": "4.3.0",
            "Node": "kazoo_apps@apps001", "System-Log-ID": "x"
        });
        let fields = message.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        message
    }

    #[test]
    fn the_platforms_request_for_sessions_is_read() {
        let request = read_get(&get(json!({}))).expect("a request");
        let expected = Request {
            reply_to: ReplyTo {
                routing_key: "amqp_queue".into(),
                pid: Some("<0.1234.0>".into()),
            },
            msg_id: Some("m-1".into()),
            question: Question::Sessions(Whose {
                account: Some(AccountId::parse(ACCOUNT)),
                socket: None,
            }),
        };
        assert_eq!(request, expected);
        let of_socket = get(json!({"Account-ID": null, "Socket-ID": "10.0.0.1:5"}));
        let question = read_get(&of_socket).expect("a request").question;
        let whose = Whose {
            account: None,
            socket: Some("10.0.0.1:5".into()),
        };
        assert_eq!(question, Question::Sessions(whose));
        let nobody = read_get(&get(json!({"Account-ID": "nobody"}))).expect("a request");
        let whose = Whose {
            account: Some(None),
            socket: None,
        };
        assert_eq!(nobody.question, Question::Sessions(whose));
    }

    #[test]
    fn an_answer_goes_where_the_server_id_says_if_that_can_be() {
        let queue = "q".repeat(255);
        for (server_id, expected) in [
            ("amqp_queue", Some(("amqp_queue", None))),
            ("pid://<0.1.2>/a/b", Some(("a/b", Some("<0.1.2>")))),
            (&*queue, Some((&*queue, None))),
            (
                &*format!("pid://<0.1.2>/{queue}"),
                Some((&*queue, Some("<0.1.2>"))),
            ),
            (&*format!("{queue}q"), None),
            (&*format!("pid://<0.1.2>/{queue}q"), None),
            (&*format!("pid://{queue}q/queue"), None),
            ("pid://<0.1.2>", None),
            ("pid://<0.1.2>/", None),
            ("pid:///queue", None),
            ("a\nb", None),
        ] {
            let read = read_get(&get(json!({"Server-ID": server_id})));
            let found = read.as_ref().map(|request| {
                let ReplyTo { routing_key, pid } = &request.reply_to;
                (&**routing_key, pid.as_deref())
            });
            assert_eq!(found, expected.ok_or(&Refusal::ServerId), "{server_id}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_by_its_kind() {
        let module = |more: Value| {
            let mut message =
                json!({"Module": "bh_call", "Action": "stop", "Persist": true, "Server-ID": "q"});
            let fields = message.as_object_mut().expect("an object");
            fields.extend(more.as_object().expect("an object").clone());
            message
        };
        for (refused, expected) in [
            (read("sysconf", "other", b"{}"), Refusal::Address),
            (read("", "websockets.get", b"{}"), Refusal::Address),
            (
                read("sysconf", "websockets.get", b"{\"a\""),
                Refusal::NotJson,
            ),
            (read("sysconf", "websockets.get", b"\xff"), Refusal::NotJson),
            (read("sysconf", "websockets.get", b"[]"), Refusal::NotJson),
            (
                read("sysconf", "websockets.get", "[".repeat(60_000).as_bytes()),
                Refusal::NotJson,
            ),
            (
                read_get(&get(json!({"Server-ID": null}))),
                Refusal::NoServerId,
            ),
            (
                read_get(&get(json!({"Server-ID": ""}))),
                Refusal::NoServerId,
            ),
            (
                read_get(&get(json!({"Server-ID": 7}))),
                Refusal::Field("Server-ID"),
            ),
            (
                read_get(&get(json!({"Event-Name": "get_resp"}))),
                Refusal::Field("Event-Name"),
            ),
            (
                read_get(&get(json!({"Event-Category": "x"}))),
                Refusal::Field("Event-Category"),
            ),
            (
                read_get(&get(json!({"Account-ID": null}))),
                Refusal::Field("Account-ID"),
            ),
            (
                read_get(&get(json!({"Account-ID": [ACCOUNT]}))),
                Refusal::Field("Account-ID"),
            ),
            (
                read_get(&get(json!({"Socket-ID": {}}))),
                Refusal::Field("Socket-ID"),
            ),
            (
                read_get(&get(json!({"Msg-ID": 1}))),
                Refusal::Field("Msg-ID"),
            ),
            (
                read_module(&module(json!({"Module": null}))),
                Refusal::Field("Module"),
            ),
            (
                read_module(&module(json!({"Action": "restart"}))),
                Refusal::Field("Action"),
            ),
            (
                read_module(&module(json!({"Action": null}))),
                Refusal::Field("Action"),
            ),
            (
                read_module(&module(json!({"Persist": 1}))),
                Refusal::Field("Persist"),
            ),
            (
                read_module(&module(json!({"Server-ID": null}))),
                Refusal::NoServerId,
            ),
        ] {
            assert_eq!(refused, Err(expected));
        }
    }

    #[test]
    fn a_change_of_a_module_is_kept_unless_it_says_otherwise() {
        for (persist, expected) in [
            (json!(true), true),
            (json!(false), false),
            (json!("false"), false),
            (json!(null), true),
        ] {
            let message = json!({
                "Event-Category": "websockets", "Event-Name": "module_req", "Module": "bh_fax", "Action": "start",
                "Persist": persist, "Msg-ID": "m", "Server-ID": "q"
            });
            let change = ModuleChange {
                module: "bh_fax".into(),
                is_start: true,
                persist: expected,
            };
            let request = read_module(&message).expect("a request");
            assert_eq!(request.question, Question::Module(change));
        }
    }

    fn answer(reply: Reply) -> Answer {
        Answer {
            reply_to: ReplyTo {
                routing_key: "q".into(),
                pid: None,
            },
            msg_id: Some("m\"1".into()),
            reply,
        }
    }

    #[test]
    fn answers_have_the_members_that_the_platform_reads() {
        let mut data = Vec::new();
        let first = SessionFacts {
            id: "10.0.0.1:5000",
            source: "10.0.0.1",
            unix: 1_700_000_000,
            name: Some("a \"name\""),
            metadata: Some(r#"{"test": "test"}"#),
            bindings: ["call.*.*", "fax.status.*"],
        };
        write_session(&mut data, first, "host");
        data.push(b',');
        let second = SessionFacts {
            id: "[::1]:1",
            source: "::1",
            unix: 0,
            name: None,
            metadata: None,
            bindings: [],
        };
        write_session(&mut data, second, "host");
        let json = answer(Reply::Sessions(data)).to_json("blackhole@host");
        let json: Value = serde_json::from_slice(&json).expect("JSON");
        let headers = |name: &str| {
            json!({
                "Event-Category": "websockets", "Event-Name": name, "Msg-ID": "m\"1", "App-Name": "blackhole",
                "App-Version": env!("CARGO_PKG_VERSION"), "Node": "blackhole@host"
            })
        };
        let mut expected = headers("get_resp");
        expected["Data"] = json!([
            {"bindings": ["call.*.*", "fax.status.*"], "websocket_session_id": "10.0.0.1:5000",
             "timestamp": 63_867_219_200_u64, "name": "a \"name\"", "metadata": {"test": "test"}, "destination": "host",
             "source": "10.0.0.1"},
            {"bindings": [], "websocket_session_id": "[::1]:1", "timestamp": 62_167_219_200_u64, "destination": "host",
             "source": "::1"}
        ]);
        assert_eq!(json, expected);
        for error in [None, Some("why not")] {
            let reply = ModuleReply {
                persisted: false,
                started: true,
                error: error.map(Cow::from),
            };
            let json = answer(Reply::Module(reply)).to_json("blackhole@host");
            let json: Value = serde_json::from_slice(&json).expect("JSON");
            let mut expected = headers("module_resp");
            expected["Persisted"] = json!(false);
            expected["Started"] = json!(true);
            if let Some(error) = error {
                expected["Error"] = json!(error);
            }
            assert_eq!(json, expected);
        }
        let empty = answer(Reply::Sessions(Vec::new())).to_json("n@h");
        assert!(empty.ends_with(br#","Data":[]}"#));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_a_request_that_can_be_answered_or_is_refused(
            body in proptest::prop_oneof![
                proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
                "\\{\"(Server-ID|Account-ID|Module)\":\"(pid://)?.{0,300}\"(,\"Server-ID\":\".{0,300}\")?\\}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            for (exchange, key) in [SESSIONS_ADDRESS, MODULE_ADDRESS] {
                if let Ok(request) = read(exchange, key, &body) {
                    let ReplyTo { routing_key, pid } = request.reply_to;
                    proptest::prop_assert!((1..=255).contains(&routing_key.len()));
                    proptest::prop_assert!(pid.is_none_or(|pid| pid.len() <= 255));
                }
            }
        }
    }
}
