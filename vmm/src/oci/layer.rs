//! The bytes of a layer: a tar archive, plain or compressed.
//!
//! How it is compressed is told from its first bytes, not from its media type: `docker save` has none, and those that there are lie.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};

use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::errors::ReadFrameHeaderError::SkipFrame;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::digest::wrong;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, of as many members as there are.
    Gzip,
    /// RFC 8878, of as many frames as there are.
    Zstd,
}

impl Compression {
    /// That of `file`, which is at its beginning, and is so again afterwards.
    ///
    /// # Errors
    /// When reading fails.
    pub fn of(file: &mut File) -> io::Result<Self> {
        let mut first = Vec::with_capacity(4);
        file.take(4).read_to_end(&mut first)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Self::of_first(&first))
    }

    fn of_first(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Decompresses `from`.
///
/// # Errors
/// When it cannot be begun with.
pub fn decompress<'a>(
    from: impl Read + 'a,
    compression: Compression,
) -> io::Result<Box<dyn Read + 'a>> {
    let from = BufReader::with_capacity(1 << 16, from);
    Ok(match compression {
        Compression::None => Box::new(from),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Compression::Zstd => Box::new(Frames {
            from,
            decoder: FrameDecoder::new(),
            within: false,
        }),
    })
}

/// As [`decompress`], from what begins as its first bytes say.
///
/// # Errors
/// When reading fails.
pub fn decompress_any<'a>(mut from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = Vec::with_capacity(4);
    from.by_ref().take(4).read_to_end(&mut first)?;
    let compression = Compression::of_first(&first);
    decompress(io::Cursor::new(first).chain(from), compression)
}

/// The frames of a zstd file, one behind the other: the decoder ends with each.
struct Frames<R> {
    from: R,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: BufRead> Frames<R> {
    /// Begins the next frame, if there is one.
    fn next(&mut self) -> io::Result<bool> {
        while !self.from.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.from) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.from.by_ref().take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(wrong(format!("damaged zstd frame: {error}"))),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within {
                self.within = self.next()?;
                if !self.within {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() < buffer.len() && !self.decoder.is_finished() {
                let wanted = buffer.len() - self.decoder.can_collect();
                self.decoder
                    .decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBytes(wanted))
                    .map_err(|error| wrong(format!("damaged zstd frame: {error}")))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.within = false;
        }
    }
}
