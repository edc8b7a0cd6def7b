//! The durable log of Millstream and the broker built on it.
