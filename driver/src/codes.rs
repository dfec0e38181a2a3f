//! Which gRPC code of CSI an answer of the gateway becomes. The only place that decides it for the array side.
//!
//! The sidecars read four codes as "may still be running, ask again, and clean up afterwards": CANCELLED,
//! DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED. For every other code external-provisioner forgets the call, and what a
//! half-done CreateVolume left on the array would stay there for ever. So a call that changes the array answers one of
//! the four whenever something may be in flight or half made, and never otherwise: a refusal must end.
//!
//! | the gateway says | Create | Delete, Publish, Unpublish, Expand, Snapshot | Validate, Get, Capacity | List |
//! | --- | --- | --- | --- | --- |
//! | CANCELLED, UNAVAILABLE | UNAVAILABLE | UNAVAILABLE | UNAVAILABLE | UNAVAILABLE |
//! | UNKNOWN, INTERNAL | UNAVAILABLE (may be half made) | UNAVAILABLE | INTERNAL | INTERNAL |
//! | DEADLINE_EXCEEDED | same | same | same | same |
//! | ABORTED (another call runs) | same | same | same | same |
//! | NOT_FOUND | INVALID_ARGUMENT (system, aggregate) | NOT_FOUND | NOT_FOUND; Capacity INVALID_ARGUMENT | INTERNAL |
//! | INVALID_ARGUMENT | same | same | same | ABORTED (starting_token) |
//! | OUT_OF_RANGE, ALREADY_EXISTS, RESOURCE_EXHAUSTED, FAILED_PRECONDITION | same | same | same | same |
//! | UNAUTHENTICATED, PERMISSION_DENIED | same | same | same | same |
//! | DATA_LOSS | same | same | same | same |
//! | UNIMPLEMENTED (gateway too old) | FAILED_PRECONDITION | same | same | same |
//! | OK without what it must hold | UNAVAILABLE | UNAVAILABLE | INTERNAL | INTERNAL |
//!
//! What never reached the gateway: not reachable UNAVAILABLE, no answer in time DEADLINE_EXCEEDED, another
//! certificate FAILED_PRECONDITION, wrong user or password UNAUTHENTICATED.

use std::error::Error;

use tonic::{Code, Status};

/// The CSI calls that lead to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rpc {
    /// CreateVolume.
    Create,
    /// DeleteVolume.
    Delete,
    /// ControllerPublishVolume.
    Publish,
    /// ControllerUnpublishVolume.
    Unpublish,
    /// ControllerExpandVolume.
    Expand,
    /// CreateSnapshot and DeleteSnapshot.
    Snapshot,
    /// ValidateVolumeCapabilities.
    Validate,
    /// ControllerGetVolume.
    Get,
    /// GetCapacity.
    Capacity,
    /// ListVolumes and ListSnapshots.
    List,
}

impl Rpc {
    /// Whether the call may leave something half done on the array.
    pub fn changes(self) -> bool {
        match self {
            Self::Create | Self::Delete | Self::Publish | Self::Unpublish | Self::Expand | Self::Snapshot => {
                true
            }
            Self::Validate | Self::Get | Self::Capacity | Self::List => false,
        }
    }
}

/// The code that the caller of `rpc` gets when the gateway answered `answer`.
pub fn csi_code(rpc: Rpc, answer: Code) -> Code {
    match answer {
        Code::Cancelled | Code::Unavailable => Code::Unavailable,
        Code::Ok | Code::Unknown | Code::Internal if rpc.changes() => Code::Unavailable,
        Code::Ok | Code::Unknown | Code::Internal => Code::Internal,
        Code::NotFound => match rpc {
            Rpc::Create | Rpc::Capacity => Code::InvalidArgument,
            Rpc::List => Code::Internal,
            Rpc::Delete
            | Rpc::Publish
            | Rpc::Unpublish
            | Rpc::Expand
            | Rpc::Snapshot
            | Rpc::Validate
            | Rpc::Get => Code::NotFound,
        },
        Code::InvalidArgument if rpc == Rpc::List => Code::Aborted,
        Code::Unimplemented => Code::FailedPrecondition,
        Code::DeadlineExceeded
        | Code::Aborted
        | Code::InvalidArgument
        | Code::OutOfRange
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::DataLoss => answer,
    }
}

/// An error of an operation that knows its code.
pub trait Coded: Error {
    /// The code for the caller.
    fn code(&self) -> Code;
}

/// What the caller gets: the code, and the error with all its sources in one line.
pub fn status(error: &impl Coded) -> Status {
    Status::new(error.code(), chain(error))
}

/// An error and all its sources in one line. Only for the edge: the text of a status, a line of the log.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use Code::*;

    use super::*;

    const RPCS: [Rpc; 10] = [
        Rpc::Snapshot,
        Rpc::Create,
        Rpc::Delete,
        Rpc::Publish,
        Rpc::Unpublish,
        Rpc::Expand,
        Rpc::Validate,
        Rpc::Get,
        Rpc::Capacity,
        Rpc::List,
    ];

    /// All 17 codes; the columns are create, the other changes, validate and get, capacity, list.
    const TABLE: [(Code, [Code; 5]); 17] = [
        (Ok, [Unavailable, Unavailable, Internal, Internal, Internal]),
        (Cancelled, [Unavailable; 5]),
        (Unknown, [Unavailable, Unavailable, Internal, Internal, Internal]),
        (
            InvalidArgument,
            [
                InvalidArgument,
                InvalidArgument,
                InvalidArgument,
                InvalidArgument,
                Aborted,
            ],
        ),
        (DeadlineExceeded, [DeadlineExceeded; 5]),
        (
            NotFound,
            [InvalidArgument, NotFound, NotFound, InvalidArgument, Internal],
        ),
        (AlreadyExists, [AlreadyExists; 5]),
        (PermissionDenied, [PermissionDenied; 5]),
        (ResourceExhausted, [ResourceExhausted; 5]),
        (FailedPrecondition, [FailedPrecondition; 5]),
        (Aborted, [Aborted; 5]),
        (OutOfRange, [OutOfRange; 5]),
        (Unimplemented, [FailedPrecondition; 5]),
        (Internal, [Unavailable, Unavailable, Internal, Internal, Internal]),
        (Unavailable, [Unavailable; 5]),
        (DataLoss, [DataLoss; 5]),
        (Unauthenticated, [Unauthenticated; 5]),
    ];

    #[test]
    fn every_code_of_every_call() {
        for number in 0..17 {
            let answer = Code::from_i32(number);
            let (_, row) = TABLE.iter().find(|(code, _)| *code == answer).unwrap();
            for rpc in RPCS {
                let column = match rpc {
                    Rpc::Create => 0,
                    Rpc::Delete | Rpc::Publish | Rpc::Unpublish | Rpc::Expand | Rpc::Snapshot => 1,
                    Rpc::Validate | Rpc::Get => 2,
                    Rpc::Capacity => 3,
                    Rpc::List => 4,
                };
                assert_eq!(csi_code(rpc, answer), row[column], "{rpc:?} {answer:?}");
            }
        }
    }

    #[test]
    fn a_create_is_retried_only_when_something_may_be_there() {
        let retried = [Cancelled, DeadlineExceeded, Unavailable, Aborted];
        let in_doubt = [
            Ok,
            Cancelled,
            Unknown,
            DeadlineExceeded,
            Internal,
            Unavailable,
            Aborted,
        ];
        for number in 0..17 {
            let answer = Code::from_i32(number);
            assert_eq!(
                retried.contains(&csi_code(Rpc::Create, answer)),
                in_doubt.contains(&answer),
                "{answer:?}"
            );
        }
    }
}
