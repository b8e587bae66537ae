//! How the agent tells that a program could not be executed: for people in the status' message, for programs in its details.

use prost::Message as _;
use tonic::{Code, Status};

use crate::agent::v1::NotExecuted;
use crate::agent::v1::not_executed::Reason;

/// The status that says so, `why` being one line for people.
#[must_use]
pub fn status(reason: Reason, why: String) -> Status {
    let details = NotExecuted {
        reason: reason.into(),
    };
    Status::with_details(Code::Internal, why, details.encode_to_vec().into())
}

/// What `status` says of it; [`Reason::Unspecified`] where it is of something else.
#[must_use]
pub fn reason(status: &Status) -> Reason {
    NotExecuted::decode(status.details()).map_or(Reason::Unspecified, |details| details.reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_in_the_status_that_tells_it() {
        for told in [Reason::Missing, Reason::Refused] {
            let status = status(told, "exec: \"x\": not found".into());
            assert_eq!(reason(&status), told);
            assert_eq!(status.message(), "exec: \"x\": not found");
        }
        let other = Status::internal("exec: no such file or directory");
        assert_eq!(reason(&other), Reason::Unspecified);
        let garbage = Status::with_details(Code::Internal, "", vec![0xff; 9].into());
        assert_eq!(reason(&garbage), Reason::Unspecified);
    }
}
