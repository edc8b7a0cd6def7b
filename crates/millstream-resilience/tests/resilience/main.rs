//! What the policies promise, each option by its effect, with a paused clock.

mod backoff;
mod breaker;
mod breaker_model;
mod classes;
mod generic;
mod giving_back;
mod keyed;
mod limits;
mod rates;
mod retry;
mod together;
