//! LZ4 frames.

use std::io::{self, Chain, Read, Write};

use lz4_flex::frame::{FrameDecoder, FrameEncoder, FrameInfo};

use super::{corrupt, read_all};
use crate::codec::CodecError;

pub(super) const NAME: &str = "lz4";

pub(super) fn compress(body: &[u8]) -> Result<Vec<u8>, CodecError> {
    let info = FrameInfo::new().content_size(Some(body.len() as u64)).content_checksum(true);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(body).and_then(|()| Ok(encoder.finish()?)).map_err(corrupt(NAME))
}

/// Several frames in a row are one body; none at all is cut short.
pub(super) fn expand(body: &[u8], max: usize) -> Result<Vec<u8>, CodecError> {
    read_all(Frames { decoder: FrameDecoder::new(after(body)), ended: false }, NAME, max)
}

/// No block can be this long. The decoder takes a frame that is cut off between two blocks for a whole one; with
/// this behind the input, it either reads it and fails, or has left it when the frame was whole.
const BEHIND: &[u8] = &[0xff; 4];

type Input<'a> = Chain<&'a [u8], &'a [u8]>;

fn after(body: &[u8]) -> Input<'_> {
    body.chain(BEHIND)
}

struct Frames<'a> {
    decoder: FrameDecoder<Input<'a>>,
    ended: bool,
}

impl Read for Frames<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let read = self.decoder.read(into)?;
            if read > 0 {
                return Ok(read);
            }
            let (body, behind) = self.decoder.get_ref().get_ref();
            if behind.len() < BEHIND.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if body.is_empty() {
                self.ended = true;
            } else {
                // A new decoder, because this one keeps the buffers of its first frame, however large.
                self.decoder = FrameDecoder::new(after(body));
            }
        }
        Ok(0)
    }
}
