//! What can go wrong with a request, and the gRPC code that it goes back with.

use orlop_proto::agent::v1::not_executed::Reason;
use orlop_proto::not_executed;
use tonic::{Code, Status};

/// A request's failure. The text is one line, for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// There is no such container or process.
    #[error("{0}")]
    NotFound(String),
    /// The id is in use.
    #[error("{0}")]
    Exists(String),
    /// The state of the process does not allow the call.
    #[error("{0}")]
    State(String),
    /// A bound of the agent's is reached.
    #[error("{0}")]
    TooMany(String),
    /// The user's program cannot be executed.
    #[error("{why}")]
    NotExecuted {
        /// For programs.
        reason: Reason,
        /// For people.
        why: String,
    },
    /// What the runtime or the kernel says.
    #[error("{0}")]
    Runtime(String),
}

impl Error {
    /// A failed system call: what was being done, and why it failed.
    pub fn system(doing: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Runtime(format!("{doing}: {why}"))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::NotExecuted { reason, why } => return not_executed::status(reason, why),
            Error::Invalid(_) => Code::InvalidArgument,
            Error::NotFound(_) => Code::NotFound,
            Error::Exists(_) => Code::AlreadyExists,
            Error::State(_) => Code::FailedPrecondition,
            Error::TooMany(_) => Code::ResourceExhausted,
            Error::Runtime(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

/// The usual result.
pub type Result<T> = std::result::Result<T, Error>;
