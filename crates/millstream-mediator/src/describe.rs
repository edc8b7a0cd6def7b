//! What is registered, as a table.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::message::Kind;

/// Everything that a mediator has: a line for each handler, in the order of names.
///
/// ```
/// # use millstream_mediator::{Error, Mediator, Request, Timeout};
/// # use std::time::Duration;
/// struct Ping;
/// impl Request for Ping { type Response = (); }
/// async fn ping(_: Ping) -> Result<(), Error> { Ok(()) }
///
/// # fn main() -> Result<(), millstream_flow::BoxError> {
/// let mediator =
///     Mediator::builder().behaviour(Timeout::new(Duration::from_secs(5))).request(ping).build()?;
/// assert_eq!(
///     mediator.describe().to_string(),
///     "message  kind     handler  behaviours, outermost first\n\
///      Ping     command  ping     timeout 5s\n"
/// );
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Description {
    /// The handlers.
    pub lines: Vec<Line>,
}

/// One handler.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Line {
    /// What its message is called.
    pub message: Arc<str>,
    /// What its message is.
    pub kind: Kind,
    /// What it is called.
    pub handler: Arc<str>,
    /// Whether it can be called by name, with JSON.
    pub by_name: bool,
    /// What stands around it, outermost first.
    pub behaviours: Vec<Cow<'static, str>>,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |title: &str, of: fn(&Line) -> usize| {
            self.lines.iter().map(of).max().unwrap_or(0).max(title.chars().count())
        };
        let message = width("message", |line| line.message.chars().count());
        let kind = width("kind", |line| line.kind.to_string().len());
        let handler = width("handler", |line| line.handler.chars().count());
        writeln!(
            f,
            "{:message$}  {:kind$}  {:handler$}  behaviours, outermost first",
            "message", "kind", "handler"
        )?;
        for line in &self.lines {
            let mut around = line.behaviours.join(" > ");
            if line.by_name {
                around.push_str(if around.is_empty() { "(json)" } else { " (json)" });
            }
            let text = format!(
                "{:message$}  {:kind$}  {:handler$}  {around}",
                line.message, line.kind, line.handler
            );
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}
