//! Pipeline files of Millstream: schema, lint, expressions, connectors.
