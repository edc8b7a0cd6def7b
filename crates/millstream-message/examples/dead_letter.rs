//! What a dead letter says about its death: `cargo run -p millstream-message --example dead_letter`.

use std::io::{self, Write};

use millstream_message::dead::{self, DeadReason, Death};
use millstream_message::{Address, Codec, Json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flight = serde_json::json!({ "carrier": "UA", "dep_time": "NA" });
    let message = Json.encode(&flight)?;
    let address = Address::queue("flights");
    let death = Death {
        reason: DeadReason::Rejected,
        detail: Some("dep_time is `NA`, not a number"),
        stage: Some("parse"),
        queue: "flights",
        address: &address,
        time: 1_357_000_000_000,
    };
    let letter = dead::letter(message, &death);
    let mut out = io::stdout().lock();
    for (name, value) in &letter.properties().headers {
        writeln!(out, "{name}: {}", serde_json::to_string(value)?)?;
    }
    let body: serde_json::Value = Json.decode(&letter)?;
    assert_eq!(body, flight, "the body is as it was");
    Ok(())
}
