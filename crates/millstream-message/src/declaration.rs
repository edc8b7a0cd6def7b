//! Many declarations at once: how they stand on a broker, and making them so.

use std::fmt;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::topology::{Binding, Exchange, Queue};

/// One thing that is declared.
#[derive(Clone, Debug, PartialEq)]
pub enum Declaration {
    /// An exchange.
    Exchange(Exchange),
    /// A queue.
    Queue(Queue),
    /// A binding.
    Binding(Binding),
}

impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Declaration::Exchange(exchange) => write!(f, "exchange `{}`", exchange.name),
            Declaration::Queue(queue) => write!(f, "queue `{}`", queue.name),
            Declaration::Binding(binding) => write!(f, "{binding}"),
        }
    }
}

/// How something that is to be declared stands on a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not there.
    Missing,
    /// It is there, as declared.
    Same,
    /// It is there, declared otherwise: the differences, as `max_items: has 5, asked for 7`.
    Different(String),
    /// The broker cannot tell, for this reason. To declare it is fine, whether it is there or not.
    Unknown(String),
}

/// Exchanges, queues and bindings that belong together.
///
/// ```
/// use millstream_message::{Binding, Exchange, ExchangeKind, Queue, Topology};
/// let topology = Topology::default()
///     .exchange(Exchange::durable("orders", ExchangeKind::Topic))
///     .queue(Queue::durable("orders.north"))
///     .binding(Binding::new("orders", "*.north", "orders.north"));
/// let order: Vec<_> = topology.declarations().iter().map(ToString::to_string).collect();
/// assert_eq!(order[2], "binding of queue `orders.north` to exchange `orders` for `*.north`");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    exchanges: Vec<Exchange>,
    queues: Vec<Queue>,
    bindings: Vec<Binding>,
}

impl Topology {
    /// Adds an exchange.
    #[must_use]
    pub fn exchange(mut self, exchange: Exchange) -> Topology {
        self.exchanges.push(exchange);
        self
    }

    /// Adds a queue.
    #[must_use]
    pub fn queue(mut self, queue: Queue) -> Topology {
        self.queues.push(queue);
        self
    }

    /// Adds a binding.
    #[must_use]
    pub fn binding(mut self, binding: Binding) -> Topology {
        self.bindings.push(binding);
        self
    }

    /// All of it, each after what it needs.
    pub fn declarations(&self) -> Vec<Declaration> {
        let exchanges = self.exchanges.iter().cloned().map(Declaration::Exchange);
        let queues = self.queues.iter().cloned().map(Declaration::Queue);
        exchanges.chain(queues).chain(self.bindings.iter().cloned().map(Declaration::Binding)).collect()
    }

    /// How all of it stands on a broker. Changes nothing.
    ///
    /// # Errors
    /// If the broker cannot be asked.
    pub async fn standings(&self, broker: &dyn Broker) -> Result<Vec<(Declaration, Standing)>, BrokerError> {
        let mut standings = Vec::new();
        for declaration in self.declarations() {
            let standing = broker.standing(&declaration).await?;
            standings.push((declaration, standing));
        }
        Ok(standings)
    }

    /// Declares all of it. What is there as declared stays as it is.
    ///
    /// # Errors
    /// The first that is there otherwise, or cannot be made: what comes before it is declared. Ask for the
    /// [standings](Topology::standings) before, to change nothing when something differs.
    pub async fn declare(&self, broker: &dyn Broker) -> Result<(), BrokerError> {
        for declaration in self.declarations() {
            match declaration {
                Declaration::Exchange(exchange) => broker.declare_exchange(exchange).await?,
                Declaration::Queue(queue) => broker.declare_queue(queue).await?,
                Declaration::Binding(binding) => broker.bind(binding).await?,
            }
        }
        Ok(())
    }
}
