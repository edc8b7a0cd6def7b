//! Where positions are kept: RabbitMQ stores nothing but messages, so a position is the only message of a queue.

use millstream_message::{Overflow, Queue};

use crate::delays::fnv;

/// The queue of a position. It keeps the newest message.
pub(crate) fn queue(name: &str) -> Queue {
    const PREFIX: &str = "millstream.position.";
    let full = if PREFIX.len() + name.len() <= 255 {
        format!("{PREFIX}{name}")
    } else {
        format!("{PREFIX}{:032x}", fnv(name))
    };
    Queue::durable(full).max_items(1).overflow(Overflow::DropHead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_has_a_queue_too() {
        assert_eq!(queue("a").name, "millstream.position.a");
        let (one, two) = (queue(&"x".repeat(300)).name, queue(&"x".repeat(301)).name);
        assert!(one.len() < 100 && one != two);
    }
}
