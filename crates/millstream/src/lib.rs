//! Streams of items through Rust services: any source, typed operators, any sink, bounded memory, nothing lost.
