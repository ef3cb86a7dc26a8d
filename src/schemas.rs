//! The protocol for machines: the AsyncAPI document and the JSON Schemas of `scripts/protocol`, as they were when the compiler
//! found them. The admin address shows them, so a client of any version can ask what this one speaks.
//!
//! Invariant: all files of that folder are here, and nothing else (`tests/integration/schemas.rs` compares). They refer to
//! each other by relative addresses, so the paths here are those of the folder.

/// The media type of an AsyncAPI document.
pub const ASYNCAPI: &str = "application/vnd.aai.asyncapi+json;version=3.0.0";

/// The media type of a JSON Schema.
pub const SCHEMA: &str = "application/schema+json";

/// A file by its path on the admin address: its media type and its text.
macro_rules! file {
    ($media_type:expr, $name:literal) => {
        (
            concat!("/protocol/", $name),
            $media_type,
            include_str!(concat!("../scripts/protocol/", $name)),
        )
    };
}

/// Path, media type and text of each file.
pub const FILES: [(&str, &str, &str); 18] = [
    file!(ASYNCAPI, "asyncapi.json"),
    file!(SCHEMA, "schemas/admin.json"),
    file!(SCHEMA, "schemas/command.json"),
    file!(SCHEMA, "schemas/common.json"),
    file!(SCHEMA, "schemas/error.json"),
    file!(SCHEMA, "schemas/event-kazoo.json"),
    file!(SCHEMA, "schemas/event-piston.json"),
    file!(SCHEMA, "schemas/gap.json"),
    file!(SCHEMA, "schemas/going_away.json"),
    file!(SCHEMA, "schemas/ping.json"),
    file!(SCHEMA, "schemas/pong.json"),
    file!(SCHEMA, "schemas/resumed.json"),
    file!(SCHEMA, "schemas/server-frame.json"),
    file!(SCHEMA, "schemas/subscribe.json"),
    file!(SCHEMA, "schemas/subscribed.json"),
    file!(SCHEMA, "schemas/subscriptions_ended.json"),
    file!(SCHEMA, "schemas/unsubscribe.json"),
    file!(SCHEMA, "schemas/unsubscribed.json"),
];
