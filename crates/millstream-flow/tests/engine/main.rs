//! The engine's claims, tested where users stand: flows built with `Pipe`, driven by a run or by hand, with time
//! paused.

mod batches;
mod breaker;
mod chain;
mod channels;
mod contexts;
mod failing;
mod idle;
mod kit;
mod lanes;
mod memo;
mod model;
mod operators;
mod panics;
mod properties;
mod replay;
mod runs;
mod selecting;
mod statements;
mod streamz;
mod support;
mod threads;
mod timing;
mod unread;
mod windows;
mod windows_model;
