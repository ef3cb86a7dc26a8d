//! What the broker's user lacks the permission for, in one line for an operator. Pure.
//!
//! Invariant: no line contains the password, even where the user's name does.

use super::url::Endpoint;

/// Of the three permissions that RabbitMQ knows, each a pattern of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Declaring.
    Configure,
    /// Binding a queue.
    Write,
    /// Consuming, and binding to an exchange.
    Read,
}

impl Permission {
    fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

/// The process's own queue, whose name is drawn.
pub(super) const OUR_QUEUE: &str = "queues (blackhole.…)";

/// The line about one permission on what `resource` names.
pub(super) fn lack(endpoint: &Endpoint, permission: Permission, resource: &str) -> Box<str> {
    let Endpoint { user, vhost, .. } = endpoint;
    let permission = permission.name();
    let line =
        format!("user {user:?} has no {permission} permission on {resource} in vhost {vhost:?}");
    endpoint.redact(&line).into()
}

/// The line about a virtual host that the user may not enter.
pub(super) fn lack_of_vhost(endpoint: &Endpoint) -> Box<str> {
    let Endpoint { user, vhost, .. } = endpoint;
    let line = format!("user {user:?} has no permission at all in vhost {vhost:?}");
    endpoint.redact(&line).into()
}

/// What a refused bind or unbind lacks, from the broker's text: `… access to queue 'q' in vhost …`, and the same for an
/// exchange, or a topic in one.
pub(super) fn lack_of_bind(endpoint: &Endpoint, text: &str) -> Option<Box<str>> {
    let (_, what) = text.split_once("access to ")?;
    let (what, _) = what.split_once(" in vhost ")?;
    Some(if what.starts_with("queue ") {
        lack(endpoint, Permission::Write, OUR_QUEUE)
    } else {
        lack(endpoint, Permission::Read, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_permission_resource_user_and_vhost_and_not_the_password() {
        let endpoint = Endpoint::parse("amqp://s3cret:s3cret@h/v").expect("a URL");
        for (text, expected) in [
            (
                "ACCESS_REFUSED - access to queue 'blackhole.x' in vhost 'v' refused for user 'u'",
                Some(
                    "user \"[password]\" has no write permission on queues (blackhole.…) in vhost \"v\"",
                ),
            ),
            (
                "ACCESS_REFUSED - access to exchange 'callevt' in vhost 'v' refused for user 'u'",
                Some(
                    "user \"[password]\" has no read permission on exchange 'callevt' in vhost \"v\"",
                ),
            ),
            (
                "ACCESS_REFUSED - access to topic 'a.b' in exchange 'callevt' in vhost 'v' refused for user 'u'",
                Some(
                    "user \"[password]\" has no read permission on topic 'a.b' in exchange 'callevt' in vhost \"v\"",
                ),
            ),
            ("NOT_FOUND - no exchange 'callevt' in vhost 'v'", None),
        ] {
            assert_eq!(lack_of_bind(&endpoint, text).as_deref(), expected);
        }
    }
}
