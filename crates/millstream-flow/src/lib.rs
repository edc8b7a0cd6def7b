//! The engine of Millstream: items, operators, stages, hops, settlement, ledger, knobs.
