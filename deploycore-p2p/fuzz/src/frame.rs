//! A frame from the network.

use bytes::{BufMut, Bytes, BytesMut};
use deploycore_p2p::core::shape::MAX_BLOCK;
use deploycore_p2p::core::wire::{self, Frame, HEADER, Kind};

/// A header and a body: whatever is taken for a frame is the same frame again when it was sent on.
pub fn run(input: &[u8]) {
    let Some((header, body)) = input.split_first_chunk::<HEADER>() else {
        return;
    };
    let _ = decode(*header, Bytes::copy_from_slice(body));
}

/// The frame, if it is one. What the header says of the length holds for what it lets in; here the body is what there is.
pub fn decode(mut header: [u8; HEADER], body: Bytes) -> Option<Frame> {
    if let Ok((kind, len)) = wire::parse_header(header) {
        let longest = match kind {
            Kind::Hello => wire::MAX_HELLO,
            Kind::Control => wire::MAX_CONTROL,
            Kind::Block => wire::BLOCK_HEADER + MAX_BLOCK as usize,
        };
        assert!((1..=longest).contains(&len), "a {kind:?} of {len} bytes");
    }
    header[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let (kind, len) = wire::parse_header(header).ok()?;
    assert_eq!(len, body.len());
    let frame = wire::parse_body(kind, body).ok()?;
    assert_eq!(kind_of(&frame), kind);
    assert_eq!(parse(&encode(&frame)).as_ref(), Some(&frame), "it is another one after it was encoded");
    Some(frame)
}

/// As the sender of a frame does.
pub fn encode(frame: &Frame) -> Bytes {
    match frame {
        Frame::Hello(hello) => wire::encode_hello(hello),
        Frame::Control(message) => wire::encode_control(message),
        Frame::Block(block) => {
            let header = wire::encode_block_header(&block.digest, block.piece, block.block, block.data.len());
            let mut bytes = BytesMut::from(&header[..]);
            bytes.put_slice(&block.data);
            bytes.freeze()
        }
    }
}

/// As its receiver does.
pub fn parse(bytes: &Bytes) -> Option<Frame> {
    let (kind, len) = wire::parse_header(bytes[..HEADER].try_into().ok()?).ok()?;
    assert_eq!(len, bytes.len() - HEADER, "the header tells the length");
    wire::parse_body(kind, bytes.slice(HEADER..)).ok()
}

fn kind_of(frame: &Frame) -> Kind {
    match frame {
        Frame::Hello(_) => Kind::Hello,
        Frame::Control(_) => Kind::Control,
        Frame::Block(_) => Kind::Block,
    }
}
