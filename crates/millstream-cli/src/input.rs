//! Messages from the command line and from standard input.

use std::io::{BufRead, Read};

use millstream_message::Message;

use crate::args::Body;
use crate::failure::Failure;
use crate::table::count;

/// Messages a batch of `publish --lines`, and bytes: enough for one sync to serve many, and bounded.
const BATCH_ITEMS: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;

/// The one message that is asked for. A body has `max` bytes at most.
pub(crate) fn one(asked: &Body, max: u64) -> Result<Message, Failure> {
    let body = match &asked.body {
        Some(body) => body.clone().into_bytes(),
        None => {
            let mut body = Vec::new();
            // One byte more than allowed tells a body that is too long from one that just fits.
            let read = std::io::stdin().lock().take(max + 1).read_to_end(&mut body);
            read.map_err(unreadable)?;
            if body.len() as u64 > max {
                return Err(Failure::Failed(format!(
                    "standard input is longer than the {} bytes that a message may have; \
                     --lines publishes each line as a message of its own",
                    count(max)
                )));
            }
            body
        }
    };
    message(asked, body)
}

/// The next lines of standard input, each a message; none at its end. `published` is how many came before.
pub(crate) fn lines(asked: &Body, max: u64, published: u64) -> Result<Vec<Message>, Failure> {
    let mut input = std::io::stdin().lock();
    let (mut messages, mut bytes) = (Vec::new(), 0);
    while messages.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
        let mut line = Vec::new();
        if (&mut input).take(max + 1).read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 > max {
            return Err(Failure::Failed(format!(
                "line {} of standard input is longer than the {} bytes that a message may have; \
                 the lines before it are published up to {published}",
                published + messages.len() as u64 + 1,
                count(max)
            )));
        }
        bytes += line.len();
        messages.push(message(asked, line)?);
    }
    Ok(messages)
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::of("cannot read standard input", &error)
}

fn message(asked: &Body, body: Vec<u8>) -> Result<Message, Failure> {
    let mut message = Message::new(body);
    for header in &asked.headers {
        let Some((name, value)) = header.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Failure::Refused(format!("--header {header}: write NAME=VALUE, as in tenant=north")));
        };
        message = message.with_header(name, value);
    }
    if let Some(content_type) = &asked.content_type {
        message = message.with_content_type(content_type);
    }
    Ok(message)
}
