//! The command line: what there is to say, and its help.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use millstream_message::{BrokerUrl, Overflow, QueueKind, StreamFrom};

use crate::units;

const EXIT_CODES: &str = "\
Exit codes:
  0    done: every item is completed, dropped by a step, or a dead letter, as the pipeline says
  1    failed: the run, the broker, the disk, an offline case, a damaged log
  2    refused before anything started: a wrong argument, or a pipeline file with problems
  129  stopped by SIGHUP   }
  130  stopped by SIGINT   } what was accepted was finished within --drain, or is kept in a durable buffer;
  143  stopped by SIGTERM  } the report says which. A second signal stops at once";

const GATEWAY_EXIT_CODES: &str = "\
Exit codes:
  0    done: the configuration was printed
  1    failed: an address that is taken, a broker, a key or a certificate that cannot be read
  2    refused before anything started: a wrong argument, or a configuration with problems
  130  stopped by SIGINT   } exchanges that had begun were finished within --drain.
  143  stopped by SIGTERM  } A second signal stops at once
SIGHUP reads the configuration again";

/// Streams of items from a source through typed steps to an output, with bounded memory and nothing lost.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Millstream {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run pipelines until their sources end or a signal comes
    #[command(after_help = EXIT_CODES)]
    Run(Run),
    /// Check a pipeline file: every problem with its line, its column and its remedy
    Lint(Lint),
    /// Draw a pipeline as a Mermaid diagram
    Graph(File),
    /// Run the offline cases beside a pipeline (FILE.test.yaml), without its source and outputs
    Test(Test),
    /// Stream HTTP through pooled buffers: a proxy in constant memory
    #[command(after_help = GATEWAY_EXIT_CODES)]
    Gateway(Gateway),
    /// Look at queues and use them, on any broker
    #[command(subcommand)]
    Queue(Queue),
    /// Declare streams and look at them, on a broker that has them
    #[command(subcommand)]
    Stream(Stream),
    /// Declare exchanges, queues and bindings from a file
    #[command(subcommand)]
    Topology(Topology),
    /// Look at dead letters, put them back where they came from, or discard them
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Check and export the log of an embedded broker
    #[command(subcommand)]
    Log(Log),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Pipeline files; several run side by side in this process
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Override a setting by its dotted path, as in `batch.count=100`; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Write the final report as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Serve the status page, /metrics and /health on this address, as in 127.0.0.1:9090
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) listen: Option<SocketAddr>,
    /// How long a run may finish what it accepted after a signal, as in `30s`
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub(crate) drain: Duration,
    /// Print nothing but errors, and brokers that are lost and back
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Gateway {
    /// The configuration, read again on SIGHUP; `docs/gateway.md` lists what it may say
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Where requests go that no route of the file takes; several share them
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) upstream: Vec<String>,
    /// Where to listen, as in 0.0.0.0:8080
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Show /metrics, /health, /streams, /buffer-pool-metrics, /status.json and /config on this address
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) admin: Option<SocketAddr>,
    /// Override a setting by its dotted key, as in `response.chunk=64KiB`; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Print every setting with its value and where it comes from, and end
    #[arg(long)]
    pub(crate) print_config: bool,
    /// How long exchanges may finish after a signal, as in `30s`
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub(crate) drain: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct File {
    /// The pipeline file
    pub(crate) file: PathBuf,
    /// Override a setting by its dotted path; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Lint {
    /// Pipeline files
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Override a setting by its dotted path; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The pipeline file; its cases stand in the file beside it that ends with `.test.yaml`
    pub(crate) file: PathBuf,
    /// Override a setting by its dotted path; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OnBroker {
    /// The broker: `embedded:DIRECTORY`, `memory:`, `amqp://HOST`, `rabbitmq-stream://HOST`
    #[arg(value_name = "URL")]
    pub(crate) url: BrokerUrl,
}

#[derive(Debug, Args)]
pub(crate) struct OnQueue {
    /// The broker: `embedded:DIRECTORY`, `memory:`, `amqp://HOST`, `rabbitmq-stream://HOST`
    #[arg(value_name = "URL")]
    pub(crate) url: BrokerUrl,
    /// The name of the queue
    #[arg(value_name = "QUEUE")]
    pub(crate) queue: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// List all queues with what they hold
    List {
        #[command(flatten)]
        on: OnBroker,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a queue; making it again as it is changes nothing
    Declare(Declare),
    /// Publish a message and wait until it is stored
    Publish(Publish),
    /// Take messages and print their bodies, one a line
    Consume(Consume),
    /// Look at messages without taking them
    Peek {
        #[command(flatten)]
        on: OnQueue,
        /// At most this many
        #[arg(long, default_value_t = 10)]
        max: usize,
        /// After skipping this many
        #[arg(long, default_value_t = 0)]
        skip: u64,
        /// Print a JSON object a line, with headers and properties
        #[arg(long)]
        json: bool,
    },
    /// Show what a queue holds and how it is declared
    Stats {
        #[command(flatten)]
        on: OnQueue,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove every message that is ready
    Purge {
        #[command(flatten)]
        on: OnQueue,
        /// Really remove them
        #[arg(long)]
        yes: bool,
    },
    /// Remove a queue with its messages and bindings
    Delete {
        #[command(flatten)]
        on: OnQueue,
        /// Really remove it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OnStream {
    /// The broker: `embedded:DIRECTORY`, `rabbitmq-stream://HOST`
    #[arg(value_name = "URL")]
    pub(crate) url: BrokerUrl,
    /// The name of the stream
    #[arg(value_name = "STREAM")]
    pub(crate) stream: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Stream {
    /// Declare a stream, or a super stream of several
    Declare {
        #[command(flatten)]
        on: OnStream,
        /// About how many bytes to keep, as in `1GiB`; without it, all
        #[arg(long, value_name = "SIZE", value_parser = units::size)]
        max_bytes: Option<u64>,
        /// About how long to keep a message, as in `7d`; without it, for ever
        #[arg(long, value_name = "TIME", value_parser = units::duration)]
        max_age: Option<Duration>,
        /// Make a super stream of so many streams, among which the hash of a key chooses (RabbitMQ 3.13)
        #[arg(long, value_name = "COUNT")]
        partitions: Option<u16>,
        /// Make a super stream with a stream for each of these keys (RabbitMQ 3.13)
        #[arg(long, value_name = "KEY,KEY", value_delimiter = ',', conflicts_with = "partitions")]
        keys: Option<Vec<String>>,
    },
    /// Append a message and wait until it is stored
    Publish(Append),
    /// Print the bodies of messages, one a line; they stay for other readers
    Read(Read),
    /// Show where a stream begins and where it ends
    Stats {
        #[command(flatten)]
        on: OnStream,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a stream with its messages
    Delete {
        #[command(flatten)]
        on: OnStream,
        /// Really remove it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Append {
    #[command(flatten)]
    pub(crate) on: OnStream,
    #[command(flatten)]
    pub(crate) body: Body,
}

#[derive(Debug, Args)]
pub(crate) struct Read {
    #[command(flatten)]
    pub(crate) on: OnStream,
    /// Where to begin: `first`, `last`, `next`, an offset, or how long ago, as in `1h`
    #[arg(long, value_name = "PLACE", value_parser = units::stream_from, default_value = "first")]
    pub(crate) from: StreamFrom,
    /// At most this many; without it, to the end of the stream
    #[arg(long, value_name = "COUNT")]
    pub(crate) max: Option<u64>,
    /// Wait for more at the end of the stream, until a signal
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print a JSON object a line, with offset, time, headers and properties
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Declare {
    #[command(flatten)]
    pub(crate) on: OnQueue,
    /// Forget the queue at a restart
    #[arg(long)]
    pub(crate) transient: bool,
    /// How long a message may wait, as in `1h`
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) ttl: Option<Duration>,
    /// How many messages may be ready
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_items: Option<u64>,
    /// How many bytes may be ready, as in `1GiB`
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) max_bytes: Option<u64>,
    /// What happens to a publish when the queue is full: `reject-publish` or `drop-head`
    #[arg(long, value_parser = overflow, default_value = "reject-publish")]
    pub(crate) overflow: Overflow,
    /// The queue for messages that expired, overflowed or were rejected; made if there is none
    #[arg(long, value_name = "QUEUE")]
    pub(crate) dead_letters: Option<String>,
    /// How many times a message may be given back before it is a dead letter
    #[arg(long, value_name = "COUNT")]
    pub(crate) delivery_limit: Option<u32>,
    /// The highest priority that is looked at
    #[arg(long, value_name = "LEVEL")]
    pub(crate) max_priority: Option<u8>,
    /// How it is kept: `classic`, `quorum` or `stream`
    #[arg(long, value_parser = kind)]
    pub(crate) kind: Option<QueueKind>,
    /// Deliver to one consumer at a time; the next takes over when it has gone
    #[arg(long)]
    pub(crate) single_active_consumer: bool,
    /// How long it may be unused before it goes by itself, as in `1h`
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) expires: Option<Duration>,
}

/// An address to listen on; a name is looked up.
fn address(text: &str) -> Result<SocketAddr, String> {
    let remedy =
        "write an address and a port, as in `127.0.0.1:9090`; `0.0.0.0:9090` is every address of the machine";
    let mut found: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| remedy)?.collect();
    // A name of this machine often means both; what is shown to people is looked for at the older one.
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| remedy.into())
}

fn kind(word: &str) -> Result<QueueKind, String> {
    match word {
        "classic" => Ok(QueueKind::Classic),
        "quorum" => Ok(QueueKind::Quorum),
        "stream" => Ok(QueueKind::Stream),
        _ => Err("write `classic`, `quorum` or `stream`".into()),
    }
}

fn overflow(word: &str) -> Result<Overflow, String> {
    match word {
        "reject-publish" => Ok(Overflow::Reject),
        "drop-head" => Ok(Overflow::DropHead),
        _ => Err("write `reject-publish` or `drop-head`".into()),
    }
}

/// What is published.
#[derive(Debug, Args)]
pub(crate) struct Body {
    /// The body; without it, standard input is the body
    #[arg(value_name = "BODY")]
    pub(crate) body: Option<String>,
    /// Publish each line of standard input as a message of its own
    #[arg(long, conflicts_with = "body")]
    pub(crate) lines: bool,
    /// A header, as in `tenant=north`; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// The media type of the body, as in `application/json`
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    #[command(flatten)]
    pub(crate) on: OnQueue,
    #[command(flatten)]
    pub(crate) body: Body,
    /// How long the message may wait in the queue
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) ttl: Option<Duration>,
    /// How long the message stays invisible
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) delay: Option<Duration>,
    /// Higher goes first, in a queue that looks at priorities
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    pub(crate) priority: u8,
}

#[derive(Debug, Args)]
pub(crate) struct Consume {
    #[command(flatten)]
    pub(crate) on: OnQueue,
    /// At most this many; without it, until the queue is empty
    #[arg(long, value_name = "COUNT")]
    pub(crate) max: Option<u64>,
    /// Wait for more when the queue is empty, until a signal
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print a JSON object a line, with headers and properties
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topology {
    /// Show how everything in a topology file stands on a broker; changes nothing
    Check(OnTopology),
    /// Show the same, and declare what is missing; changes nothing if something is there, declared otherwise
    Apply(OnTopology),
}

#[derive(Debug, Args)]
pub(crate) struct OnTopology {
    /// The topology file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The broker: `embedded:DIRECTORY`, `amqp://HOST`
    #[arg(long, value_name = "URL")]
    pub(crate) broker: BrokerUrl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// List dead letters by queue, reason and stage, with an example of each
    List {
        #[command(flatten)]
        on: OnBroker,
        /// Only this queue; without it, every queue that holds dead letters
        #[arg(value_name = "QUEUE")]
        queue: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show dead letters with their history and bodies
    Show {
        #[command(flatten)]
        on: OnQueue,
        #[command(flatten)]
        which: Which,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Put dead letters back into the queue they died in, or where you say
    Replay {
        #[command(flatten)]
        on: OnQueue,
        #[command(flatten)]
        which: Which,
        /// Put them into this queue instead
        #[arg(long, value_name = "QUEUE", conflicts_with = "as_published")]
        to: Option<String>,
        /// Publish them as they were: to their exchange, and so to all queues that are bound there
        #[arg(long)]
        as_published: bool,
    },
    /// Remove dead letters for good
    Discard {
        #[command(flatten)]
        on: OnQueue,
        #[command(flatten)]
        which: Which,
        /// Really remove them
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters are meant.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only those whose reason, stage or detail contains this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) matching: Option<String>,
    /// At most this many, the oldest first
    #[arg(long, value_name = "COUNT")]
    pub(crate) max: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Read every record of a log and say what is damaged
    Verify {
        /// The directory of the embedded broker, or its URL
        directory: PathBuf,
    },
    /// Print every record that can be read, a JSON object a line
    Export {
        /// The directory of the embedded broker, or its URL
        directory: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn an_address_may_be_a_name_and_must_have_a_port() {
        assert_eq!(super::address("localhost:9090"), Ok(([127, 0, 0, 1], 9090).into()));
        assert_eq!(super::address("[::1]:0").map(|address| address.is_ipv6()), Ok(true));
        for wrong in ["9090", "localhost", "127.0.0.1:99999", ""] {
            let refused = super::address(wrong).expect_err("no address");
            assert!(refused.contains("as in `127.0.0.1:9090`"), "{wrong}: {refused}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        super::Millstream::command().debug_assert();
    }
}
