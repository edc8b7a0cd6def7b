//! Zstandard, RFC 8878.

use zstd::bulk::Compressor;
use zstd::stream::read::Decoder;
use zstd::zstd_safe::{CParameter, get_frame_content_size};

use super::{corrupt, read_all};
use crate::codec::CodecError;

pub(super) const NAME: &str = "zstd";

pub(super) fn compress(body: &[u8], level: u8) -> Result<Vec<u8>, CodecError> {
    let mut compressor = Compressor::new(level.into()).map_err(corrupt(NAME))?;
    compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(corrupt(NAME))?;
    compressor.compress(body).map_err(corrupt(NAME))
}

/// Several frames in a row are one body (RFC 8878 §3); none at all is cut short.
pub(super) fn expand(body: &[u8], max: usize) -> Result<Vec<u8>, CodecError> {
    // What the frame says of itself saves the window; if it lies, the decoder notices.
    if let Ok(Some(size)) = get_frame_content_size(body)
        && size > max as u64
    {
        return Err(CodecError::Expands { encoding: NAME, max });
    }
    let mut decoder = Decoder::with_buffer(body).map_err(corrupt(NAME))?;
    decoder.window_log_max(window_log(max)).map_err(corrupt(NAME))?;
    read_all(decoder, NAME, max)
}

/// How far back a frame may refer, as a power of two: `max` bytes, but no less than the 8 MiB that everybody must take
/// (RFC 9659) and no more than the 128 MiB of the highest level.
fn window_log(max: usize) -> u32 {
    (usize::BITS - max.saturating_sub(1).leading_zeros()).clamp(23, 27)
}
