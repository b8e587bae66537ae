//! What a call answers when it fails: a gRPC code that containerd acts on, and one line that a person reads.

use containerd_shim_protos::ttrpc;
use ttrpc::Code;

/// A failed call.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: Code,
    message: String,
}

/// The result of a call.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// There is no such container or process. The one failure that containerd takes for success in a delete.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// The id is in use.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// The state of the container or process does not allow the call.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// Orlop does not do that.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::UNIMPLEMENTED, message)
    }

    /// The VM cannot be reached.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::UNAVAILABLE, message)
    }

    /// Something went wrong on this machine or in the guest; the message says what.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }

    /// Whether the failure is that the thing is not there.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NOT_FOUND
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn while_doing(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}

/// The guest's answers. What it says is only text: cut to a line of bounded length, without control characters.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::NotFound => Code::NOT_FOUND,
            tonic::Code::AlreadyExists => Code::ALREADY_EXISTS,
            tonic::Code::FailedPrecondition => Code::FAILED_PRECONDITION,
            tonic::Code::InvalidArgument => Code::INVALID_ARGUMENT,
            tonic::Code::Unimplemented => Code::UNIMPLEMENTED,
            tonic::Code::Unavailable => Code::UNAVAILABLE,
            tonic::Code::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
            _ => Code::INTERNAL,
        };
        Self::new(code, one_line(status.message()))
    }
}

/// `text` as one line that is safe to print: at most 1,000 characters, control characters as spaces.
pub fn one_line(text: &str) -> String {
    let line: String = text
        .trim()
        .chars()
        .take(1000)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_code_is_kept_and_its_text_is_tamed() {
        let failure = Failure::from(tonic::Status::not_found("no\u{1b}[2J\nsuch container\n"));
        assert!(failure.is_not_found());
        assert_eq!(failure.to_string(), "no [2J such container");
        let failure = Failure::from(tonic::Status::data_loss("x".repeat(5000)));
        assert_eq!(failure.to_string().len(), 1000);
        let ttrpc::Error::RpcStatus(status) = failure.while_doing("create").into() else {
            panic!("not a status");
        };
        assert_eq!(status.code(), Code::INTERNAL);
        assert!(status.message().starts_with("create: xxx"));
    }
}
