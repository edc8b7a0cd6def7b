//! Where items go: each output, and the sink that holds all outputs of a run.

pub(crate) mod file;
#[cfg(feature = "http")]
mod http;
mod partial;
mod queue;
mod retry;
mod sink;
pub(crate) mod stdout;
mod stream;

#[cfg(feature = "http")]
pub(crate) use self::http::HttpClient;
pub(crate) use self::queue::{QueueOutput, message_fits};
pub(crate) use self::retry::Tries;
pub(crate) use self::sink::{End, Out, Outputs, ROUTE, SKIPPED, Writing};
pub(crate) use self::stdout::StdoutOutput;
pub(crate) use self::stream::StreamOutput;
