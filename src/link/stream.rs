//! A session over a stream of bytes: a program's standard input and output, a socket of this machine.
//!
//! A message is its kind (1 byte: 0 text, 1 binary, 2 a sign of life), its length (4 bytes, little-endian) and its bytes.

use std::io;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::frames::Message;
use crate::limits::SESSION_MESSAGE_BYTES_MAX;

const TEXT: u8 = 0;
const BINARY: u8 = 1;
const PING: u8 = 2;
const HEAD_BYTES: usize = 5;

/// Writes and reads messages of a stream.
#[derive(Debug, Default)]
pub struct Messages(());

impl Encoder<Message> for Messages {
    type Error = io::Error;

    fn encode(&mut self, message: Message, stream: &mut BytesMut) -> io::Result<()> {
        let (kind, bytes) = match &message {
            Message::Text(text) => (TEXT, text.as_bytes()),
            Message::Binary(bytes) => (BINARY, bytes.as_ref()),
            Message::Ping => (PING, [].as_slice()),
        };
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.reserve(HEAD_BYTES + bytes.len());
        stream.put_u8(kind);
        stream.put_u32_le(length);
        stream.put_slice(bytes);
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = Message;
    type Error = io::Error;

    fn decode(&mut self, stream: &mut BytesMut) -> io::Result<Option<Message>> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{why}; it is not muster-agent that speaks"));
        let Some(mut head) = stream.get(..HEAD_BYTES) else { return Ok(None) };
        let (kind, length) = (head.get_u8(), head.get_u32_le() as usize);
        if kind > PING || length > SESSION_MESSAGE_BYTES_MAX {
            return Err(invalid("what came is no message"));
        }
        if stream.len() < HEAD_BYTES + length {
            stream.reserve(HEAD_BYTES + length - stream.len());
            return Ok(None);
        }
        stream.advance(HEAD_BYTES);
        let bytes = stream.split_to(length).freeze();
        Ok(Some(match kind {
            TEXT => Message::Text(String::from_utf8(bytes.to_vec()).map_err(|_| invalid("a text is not UTF-8"))?),
            BINARY => Message::Binary(bytes),
            _ => Message::Ping,
        }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in_however_the_stream_is_cut() {
        let messages =
            [Message::Text("ä".into()), Message::Ping, Message::Binary(Bytes::from(vec![7; 1000])), Message::Text(String::new())];
        let mut whole = BytesMut::new();
        messages.iter().for_each(|message| Messages::default().encode(message.clone(), &mut whole).unwrap());
        for piece in [1, 7, 5000] {
            let (mut stream, mut out, mut codec) = (BytesMut::new(), Vec::new(), Messages::default());
            for bytes in whole.chunks(piece) {
                stream.extend_from_slice(bytes);
                while let Some(message) = codec.decode(&mut stream).unwrap() {
                    out.push(message);
                }
            }
            assert_eq!((out.as_slice(), stream.len()), (messages.as_slice(), 0));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&b"Welcome to this machine"[..], &[0, 255, 255, 255, 255], &[0, 1, 0, 0, 0, 255]] {
            assert!(Messages::default().decode(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
