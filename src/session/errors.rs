//! Why a command is refused, the reply that says so, and what the metrics call it.

use crate::metrics::commands::CommandResult;
use crate::protocol::command::CommandError;
use crate::protocol::reply;
use crate::routing::families::BindingError;

use super::hub::Hub;
use super::replies::Reply;

/// Every reason for which a command is refused; at least one.
pub(super) enum CommandErrors {
    Command(CommandError),
    Bindings(Vec<BindingError>),
    /// The client gets [`CommandError::EventSourceUnavailable`].
    Source(SourceTrouble),
}

/// Why a subscribe does not get what it needs of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceTrouble {
    /// The broker did not confirm a binding in `request_timeout_ms`.
    Timeout,
    /// The broker refuses a binding.
    Refused,
    /// The subscribe could not wait, or wait on, because too much was held back.
    GivenUp,
}

impl CommandErrors {
    /// Returns the error reply.
    pub(super) fn reply(self, reply_id: &str, hub: &mut Hub) -> Reply {
        let builder = &mut hub.builder;
        Reply::Frame(match self {
            Self::Command(error) => reply::errors(builder, reply_id, [error]),
            Self::Bindings(errors) => reply::errors(builder, reply_id, errors),
            Self::Source(_) => {
                reply::errors(builder, reply_id, [CommandError::EventSourceUnavailable])
            }
        })
    }

    /// The error texts, for those who look: as the client is told them, but for what an unknown action is called.
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Self::Command(CommandError::UnknownAction(_)) => vec!["unknown action".to_owned()],
            Self::Command(error) => vec![error.to_string()],
            Self::Bindings(errors) => errors.iter().map(ToString::to_string).collect(),
            Self::Source(_) => vec![CommandError::EventSourceUnavailable.to_string()],
        }
    }

    /// What the metrics call it.
    pub(super) fn result(&self) -> CommandResult {
        match self {
            Self::Bindings(_) => CommandResult::Failed,
            Self::Source(SourceTrouble::Timeout) => CommandResult::BrokerTimeout,
            Self::Source(SourceTrouble::Refused) => CommandResult::BrokerRefused,
            Self::Source(SourceTrouble::GivenUp) => CommandResult::GivenUp,
            Self::Command(error) => match error {
                CommandError::AuthenticationRequired | CommandError::AuthenticationFailed => {
                    CommandResult::Unauthenticated
                }
                CommandError::AuthenticationUnavailable => CommandResult::Unavailable,
                CommandError::UnauthorizedAccount | CommandError::UnauthorizedWildcard => {
                    CommandResult::Unauthorized
                }
                CommandError::RateLimited(_) => CommandResult::RateLimited,
                CommandError::TooManySubscriptions(_) => CommandResult::TooManySubscriptions,
                CommandError::TooManyBindings(_) => CommandResult::TooManyBindings,
                CommandError::TooManyBindingsOfAccount(_) => CommandResult::TooManyAccountBindings,
                CommandError::TooManySessions(_) => CommandResult::TooManySessions,
                CommandError::MetadataTooLarge(_) => CommandResult::MetadataTooLarge,
                CommandError::EventSourceUnavailable => CommandResult::BrokerRefused,
                CommandError::MissingData
                | CommandError::MissingKeys(_)
                | CommandError::InvalidJson(_)
                | CommandError::MissingAction
                | CommandError::UnknownAction(_)
                | CommandError::Invalid(_) => CommandResult::Failed,
            },
        }
    }
}

impl From<CommandError> for CommandErrors {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

impl From<SourceTrouble> for CommandErrors {
    fn from(trouble: SourceTrouble) -> Self {
        Self::Source(trouble)
    }
}
