//! Bytes to items and items to bytes: lines, JSON lines, csv rows.
//!
//! Decoding is in two steps. A [`Framer`] cuts the bytes into lines or rows with bounded memory; a [`Decoder`]
//! makes an item of each. What is wrong with one line is that line's [`Fault`], never the source's.

mod csv;
mod decode;
mod encode;
mod frame;

pub(crate) use self::decode::{Decoder, Fault};
pub(crate) use self::encode::Encoder;
#[cfg(feature = "http")]
pub(crate) use self::frame::BYTE_ORDER_MARK;
pub(crate) use self::frame::{Frame, Framer};
