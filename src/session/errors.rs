//! Why a command is refused, the reply that says so, and its counters.

use crate::metrics::Metrics;
use crate::protocol::command::CommandError;
use crate::protocol::reply;
use crate::routing::families::BindingError;

use super::hub::Hub;
use super::replies::Reply;

/// Every reason for which a command is refused; at least one.
pub(super) enum CommandErrors {
    Command(CommandError),
    Bindings(Vec<BindingError>),
}

impl CommandErrors {
    /// Counts the refusal, and returns the error reply.
    pub(super) fn refuse(self, reply_id: &str, hub: &mut Hub) -> Reply {
        self.count(&mut hub.metrics);
        hub.metrics.commands_failed_total += 1;
        Reply::Frame(match self {
            Self::Command(error) => reply::errors(&mut hub.builder, reply_id, [error]),
            Self::Bindings(errors) => reply::errors(&mut hub.builder, reply_id, errors),
        })
    }

    /// The error texts, for those who look: as the client is told them, but for what an unknown action is called.
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Self::Command(CommandError::UnknownAction(_)) => vec!["unknown action".to_owned()],
            Self::Command(error) => vec![error.to_string()],
            Self::Bindings(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    /// Counts the limit that was met, if it was a limit.
    fn count(&self, metrics: &mut Metrics) {
        let counter = match self {
            Self::Command(CommandError::AuthenticationUnavailable) => {
                &mut metrics.commands_refused_unavailable_total
            }
            Self::Command(CommandError::TooManySubscriptions(_)) => {
                &mut metrics.commands_refused_subscriptions_total
            }
            Self::Command(CommandError::MetadataTooLarge(_)) => {
                &mut metrics.commands_refused_metadata_total
            }
            Self::Command(CommandError::TooManySessions(_)) => {
                &mut metrics.commands_refused_account_total
            }
            Self::Command(CommandError::TooManyBindings(_)) => {
                &mut metrics.commands_refused_bindings_total
            }
            Self::Command(CommandError::TooManyBindingsOfAccount(_)) => {
                &mut metrics.commands_refused_account_bindings_total
            }
            Self::Command(_) | Self::Bindings(_) => return,
        };
        *counter += 1;
    }
}

impl From<CommandError> for CommandErrors {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}
