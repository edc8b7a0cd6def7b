//! Every Rust example of every crate, run to its end; those of brokers on RabbitMQ, too.

use crate::Outcome;
use crate::rabbitmq;
use crate::steps::command;

/// The longest an example may take, in seconds, its build aside. An example that hangs is a broken one.
const SECONDS_MAX: &str = "60";

/// Those that take a broker's URL.
const ON_A_BROKER: [&str; 7] =
    ["consumer", "high_throughput", "producer", "publish_subscribe", "request_reply", "topics", "work_queue"];

/// Builds all examples, then runs each; an error names those that failed.
pub(crate) fn run() -> Outcome {
    let scratch = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let (mut failed, mut missing) = (Vec::new(), Vec::new());
    let examples = build()?;
    let mut run = |name: &str, program: &str, url: Option<&str>| {
        eprintln!("--- {name} {}", url.unwrap_or_default());
        // In a directory of its own, so that an example that writes files leaves none here.
        let outcome = command("timeout")
            .args(["--kill-after=5", SECONDS_MAX])
            .args([program])
            .args(url)
            .directory(scratch.path())
            .run();
        if let Err(problem) = outcome {
            eprintln!("{problem}");
            failed.push(name.to_owned());
        }
    };
    for (name, program) in &examples {
        run(name, program, None);
    }
    // What has failed until here is told in any case.
    let on_a_broker = match rabbitmq::start() {
        Ok(node) => {
            for name in ON_A_BROKER {
                match examples.iter().find(|(known, _)| known == name) {
                    Some((_, program)) => run(name, program, Some(&node.url())),
                    None => missing.push(format!("{name}, which is no example")),
                }
            }
            ON_A_BROKER.len()
        }
        Err(problem) => {
            missing.push(format!("RabbitMQ ({problem})"));
            0
        }
    };
    failed.append(&mut missing);
    eprintln!("{} examples, {on_a_broker} of them on RabbitMQ too", examples.len());
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

/// Name and program of each example. They are run as they were built: `cargo run` of one package would build what it
/// depends on anew, with that package's features alone, in the time that is the example's.
fn build() -> Result<Vec<(String, String)>, String> {
    let arguments = ["build", "--workspace", "--locked", "--examples", "--message-format", "json"];
    let messages =
        String::from_utf8(command("cargo").args(arguments).output()?).map_err(|e| e.to_string())?;
    let mut examples = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).map_err(|e| format!("cargo's message {line:?}: {e}"))?;
        let target = &message["target"];
        let kinds = target["kind"].as_array();
        if kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "example"))
            && let (Some(name), Some(program)) = (target["name"].as_str(), message["executable"].as_str())
        {
            examples.push((name.to_owned(), program.to_owned()));
        }
    }
    if examples.is_empty() { Err("cargo built no example".to_owned()) } else { Ok(examples) }
}
