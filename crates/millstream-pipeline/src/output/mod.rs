//! Where items go: each output, and the sink that holds all outputs of a run.

pub(crate) mod file;
mod partial;
mod queue;
mod retry;
mod sink;
mod stdout;

pub(crate) use self::queue::QueueOutput;
pub(crate) use self::retry::Tries;
pub(crate) use self::sink::{End, Out, Outputs};
pub(crate) use self::stdout::StdoutOutput;
