//! What the server answers, as numbers.

pub(crate) const OK: u16 = 1;
pub(crate) const NO_STREAM: u16 = 2;
pub(crate) const NO_SUBSCRIPTION: u16 = 4;
pub(crate) const STREAM_EXISTS: u16 = 5;
pub(crate) const STREAM_NOT_AVAILABLE: u16 = 6;
pub(crate) const AUTHENTICATION_FAILURE: u16 = 8;
pub(crate) const SASL_CHALLENGE: u16 = 10;
pub(crate) const LOOPBACK_ONLY: u16 = 11;
pub(crate) const NO_VHOST: u16 = 12;
pub(crate) const ACCESS_REFUSED: u16 = 16;
pub(crate) const PRECONDITION_FAILED: u16 = 17;
pub(crate) const NO_PUBLISHER: u16 = 18;
pub(crate) const NO_OFFSET: u16 = 19;

/// A code in words.
pub(crate) fn words(code: u16) -> &'static str {
    match code {
        OK => "ok",
        NO_STREAM => "the stream does not exist",
        3 => "the subscription's number is taken",
        NO_SUBSCRIPTION => "the subscription does not exist",
        STREAM_EXISTS => "the stream exists",
        STREAM_NOT_AVAILABLE => "the stream is not available",
        7 => "the way of logging in is not supported",
        AUTHENTICATION_FAILURE => "the name or the password is wrong",
        9 => "the log-in failed",
        SASL_CHALLENGE => "more is asked to log in",
        LOOPBACK_ONLY => "this user may connect only from the broker's own machine",
        NO_VHOST => "the virtual host does not exist, or this user may not use it",
        13 => "the command is unknown",
        14 => "the frame is too large",
        15 => "the broker failed",
        ACCESS_REFUSED => "this user may not do that",
        PRECONDITION_FAILED => "a condition is not met",
        NO_PUBLISHER => "the publisher does not exist",
        NO_OFFSET => "no offset is stored",
        _ => "the broker refused",
    }
}
