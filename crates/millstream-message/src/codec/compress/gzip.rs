//! gzip, RFC 1952.

use std::io::Write;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::{corrupt, read_all};
use crate::codec::CodecError;

pub(super) const NAME: &str = "gzip";

pub(super) fn compress(body: &[u8], level: u8) -> Result<Vec<u8>, CodecError> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level.into()));
    encoder.write_all(body).and_then(|()| encoder.finish()).map_err(corrupt(NAME))
}

/// Several members in a row are one body (RFC 1952 §2.2); none at all is cut short.
pub(super) fn expand(body: &[u8], max: usize) -> Result<Vec<u8>, CodecError> {
    read_all(MultiGzDecoder::new(body), NAME, max)
}
