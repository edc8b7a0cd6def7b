mod appending;
mod checkpoints;
mod faults;
pub(crate) mod grouped;
mod reading;
mod subscribing;

pub(crate) use self::checkpoints::says_what_the_log_says;
