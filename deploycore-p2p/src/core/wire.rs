//! Frames: how messages become bytes.
//!
//! ```text
//! frame   = length (u32, little endian, of what follows) kind (u8) body
//! hello   = kind 0, body "dcp2p" version (u16, little endian) Hello in postcard
//! control = kind 1, body Message in postcard
//! block   = kind 2, body digest (32 bytes) piece (u32) block (u32) data
//! ```
//!
//! The length is bounded by the kind before anything is allocated. A frame that breaks a rule is an [`Error`], after which the
//! connection must be closed.

use bytes::{BufMut, Bytes, BytesMut};
use deploycore::model::Digest;

use super::message::{Block, Hello, Message};
use super::shape::MAX_BLOCK;

/// The version of the protocol. Members of two versions do not talk.
pub const VERSION: u16 = 5;
/// Bytes of the length and the kind.
pub const HEADER: usize = 5;
/// The longest control frame's body: the set of the pieces of the largest artifact fits 16 times.
pub const MAX_CONTROL: usize = 256 << 10;
/// The longest hello.
pub const MAX_HELLO: usize = 1024;
/// Bytes of a block's body before its data.
pub const BLOCK_HEADER: usize = 40;

const MAGIC: &[u8; 5] = b"dcp2p";

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such kind of frame.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// Longer than its kind allows, or too short to be one.
    #[error("{kind:?} frame of {len} bytes is out of bounds")]
    Length {
        /// The kind.
        kind: Kind,
        /// What the frame says.
        len: usize,
    },
    /// The other side speaks something else.
    #[error("not a deploycore swarm connection")]
    Magic,
    /// The other side speaks another version.
    #[error("protocol version {found}, not {VERSION}")]
    Version {
        /// Its version.
        found: u16,
    },
    /// The body does not parse, has bytes left over, or breaks a bound.
    #[error("malformed {0:?} frame")]
    Malformed(Kind),
}

/// The kinds of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first frame of a connection.
    Hello,
    /// A control message.
    Control,
    /// A block.
    Block,
}

/// A frame, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first frame of a connection.
    Hello(Hello),
    /// A control message.
    Control(Message),
    /// A block.
    Block(Block),
}

/// Parses a frame's first [`HEADER`] bytes: its kind and the length of its body, which is within the kind's bounds.
pub fn parse_header(header: [u8; HEADER]) -> Result<(Kind, usize), Error> {
    let [a, b, c, d, kind] = header;
    let kind = match kind {
        0 => Kind::Hello,
        1 => Kind::Control,
        2 => Kind::Block,
        other => return Err(Error::Kind(other)),
    };
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let bounds = match kind {
        Kind::Hello => MAGIC.len() + 2..=MAX_HELLO,
        Kind::Control => 1..=MAX_CONTROL,
        Kind::Block => BLOCK_HEADER + 1..=BLOCK_HEADER + MAX_BLOCK as usize,
    };
    if bounds.contains(&len) { Ok((kind, len)) } else { Err(Error::Length { kind, len }) }
}

/// Parses a body. A block's data is a slice of it, not a copy.
pub fn parse_body(kind: Kind, mut body: Bytes) -> Result<Frame, Error> {
    match kind {
        Kind::Hello => {
            let rest = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
            let (version, rest) = rest.split_first_chunk::<2>().ok_or(Error::Malformed(kind))?;
            let found = u16::from_le_bytes(*version);
            if found != VERSION {
                return Err(Error::Version { found });
            }
            match postcard::take_from_bytes::<Hello>(rest) {
                Ok((hello, [])) if hello.name.len() <= 128 => Ok(Frame::Hello(hello)),
                _ => Err(Error::Malformed(kind)),
            }
        }
        Kind::Control => match postcard::take_from_bytes::<Message>(&body) {
            Ok((message, [])) if message.is_bounded() => Ok(Frame::Control(message)),
            _ => Err(Error::Malformed(kind)),
        },
        Kind::Block => {
            if body.len() <= BLOCK_HEADER {
                return Err(Error::Malformed(kind));
            }
            let header = body.split_to(BLOCK_HEADER);
            let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let digest = Digest::from_bytes(header[..32].try_into().expect("32 bytes"));
            Ok(Frame::Block(Block { digest, piece: number(32), block: number(36), data: body }))
        }
    }
}

fn put_header(out: &mut BytesMut, kind: u8, len: usize) {
    out.put_u32_le(len as u32);
    out.put_u8(kind);
}

/// A hello frame.
pub fn encode_hello(hello: &Hello) -> Bytes {
    let body = postcard::to_stdvec(hello).expect("a hello serialises");
    let mut out = BytesMut::new();
    put_header(&mut out, 0, MAGIC.len() + 2 + body.len());
    out.put_slice(MAGIC);
    out.put_u16_le(VERSION);
    out.put_slice(&body);
    out.freeze()
}

/// A control frame.
pub fn encode_control(message: &Message) -> Bytes {
    let body = postcard::to_stdvec(message).expect("a message serialises");
    debug_assert!(body.len() <= MAX_CONTROL && message.is_bounded(), "the sender keeps the bounds: {message:?}");
    let mut out = BytesMut::with_capacity(HEADER + body.len());
    put_header(&mut out, 1, body.len());
    out.put_slice(&body);
    out.freeze()
}

/// What precedes the `len` bytes of a block's data in its frame.
pub fn encode_block_header(digest: &Digest, piece: u32, block: u32, len: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + BLOCK_HEADER);
    put_header(&mut out, 2, BLOCK_HEADER + len);
    out.put_slice(digest.as_bytes());
    out.put_u32_le(piece);
    out.put_u32_le(block);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use deploycore::model::RegionName;
    use deploycore::port::swarm::Priority;
    use proptest::prelude::*;

    use super::super::bitfield::{Bitfield, PackedBits};
    use super::super::message::{Addr, Announcement, Contact, PeerId, Refusal, Role, Standing, Waiting, ZonePart};
    use super::*;

    fn decode(bytes: &Bytes) -> Result<Frame, Error> {
        let header: [u8; HEADER] = bytes[..HEADER].try_into().unwrap();
        let (kind, len) = parse_header(header)?;
        assert_eq!(len, bytes.len() - HEADER);
        parse_body(kind, bytes.slice(HEADER..))
    }

    fn messages() -> impl Strategy<Value = Message> {
        let digest = any::<[u8; 32]>().prop_map(Digest::from_bytes);
        let list = prop::collection::vec(any::<u32>(), 0..100);
        let contacts = prop::collection::vec((any::<u64>(), "[a-z0-9:.]{0,40}"), 0..9).prop_map(|list| {
            list.into_iter()
                .map(|(peer, addr)| Contact { peer: PeerId(peer), addr: Addr::from(addr) })
                .collect::<Vec<_>>()
        });
        let refusal = prop_oneof![
            Just(Refusal::UnknownArtifact),
            Just(Refusal::MissingPiece),
            Just(Refusal::NotLeased),
            Just(Refusal::ReadFailed),
            Just(Refusal::BadBytes)
        ];
        let bits = prop::collection::vec(any::<bool>(), 0..500).prop_map(|list| {
            let mut bits = Bitfield::new(list.len() as u32);
            for (piece, _) in (0..).zip(&list).filter(|(_, one)| **one) {
                bits.insert(piece);
            }
            PackedBits::from(&bits)
        });
        (digest, list, contacts, refusal, bits, any::<(u64, u32, u32, u16, u8)>()).prop_map(
            |(digest, pieces, gates, refusal, have, (size, piece, block, wanted, which))| match which % 15 {
                0 => Message::Join { digest, size, have, priority: Priority::Rollback },
                1 => Message::Have { digest, pieces: pieces.into(), count: block },
                2 => Message::Request { digest, piece, block, count: block / 2 },
                3 => Message::Cancel { digest, piece, block },
                4 => Message::Busy { digest, piece, block, count: block / 3 },
                5 => Message::Reject { digest, piece, block, count: block / 4, refusal },
                6 => Message::Ready { digest },
                7 => Message::Lease { digest, pieces, millis: piece },
                8 => {
                    let waiting = (size % 3 == 0).then_some(Waiting::Pieces { missing: piece, peers: block });
                    let millis = (size % 2 == 0).then_some(piece);
                    let standing = Standing { millis, from_store: size, from_peers: size / 2, waiting };
                    let part = Announcement { digest, size, addr: "h:1".into(), have, need: pieces, wanted, standing };
                    Message::Announce(Box::new(part))
                }
                9 => {
                    let part = (size % 2 == 0).then_some(ZonePart { index: block, of: piece });
                    Message::Introduce { digest, peers: gates, millis: piece, part }
                }
                10 => Message::Gates { gates },
                11 => Message::Stuck { digest, pieces, refused: vec![PeerId(size)] },
                12 => {
                    let pieces = pieces.into_iter().map(|piece| (piece, block)).collect();
                    Message::Holders { digest, pieces, stale_millis: piece, settled: size % 2 == 0 }
                }
                13 => Message::Await { digest },
                _ => Message::Ping,
            },
        )
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(message in messages()) {
            prop_assert_eq!(decode(&encode_control(&message)), Ok(Frame::Control(message)));
        }

        #[test]
        fn blocks_survive_the_wire(digest: [u8; 32], piece: u32, block: u32, data in prop::collection::vec(any::<u8>(), 1..2000)) {
            let digest = Digest::from_bytes(digest);
            let mut bytes = BytesMut::from(&encode_block_header(&digest, piece, block, data.len())[..]);
            bytes.put_slice(&data);
            let data = Bytes::from(data);
            prop_assert_eq!(decode(&bytes.freeze()), Ok(Frame::Block(Block { digest, piece, block, data })));
        }

        #[test]
        fn hellos_survive_the_wire(name in "[a-z0-9]{1,128}", incarnation: u64) {
            let hello = Hello { region: RegionName::new("eu").unwrap(), name, incarnation, role: Role::Gate, zone: None };
            prop_assert_eq!(decode(&encode_hello(&hello)), Ok(Frame::Hello(hello)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(header: [u8; HEADER], body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_header(header);
            for kind in [Kind::Hello, Kind::Control, Kind::Block] {
                let _ = parse_body(kind, Bytes::from(body.clone()));
            }
        }

        #[test]
        fn a_damaged_message_is_another_one_or_is_refused(message in messages(), at: prop::sample::Index, byte: u8) {
            let mut bytes = encode_control(&message).to_vec();
            let at = HEADER + at.index(bytes.len() - HEADER);
            bytes[at] = byte;
            if let Ok(Frame::Control(message)) = parse_body(Kind::Control, Bytes::from(bytes).slice(HEADER..)) {
                prop_assert!(message.is_bounded());
            }
        }

        #[test]
        fn what_is_too_long_is_refused_by_its_header(kind in 0_u8..3, len: u32) {
            let [a, b, c, d] = len.to_le_bytes();
            let max = [MAX_HELLO, MAX_CONTROL, BLOCK_HEADER + MAX_BLOCK as usize][usize::from(kind)];
            if let Ok((_, accepted)) = parse_header([a, b, c, d, kind]) {
                prop_assert_eq!(accepted, len as usize);
                prop_assert!(accepted <= max);
            } else {
                prop_assert!(len as usize > max || len <= BLOCK_HEADER as u32);
            }
        }
    }

    #[test]
    fn another_version_or_protocol_is_named() {
        let hello = Hello {
            region: RegionName::new("eu").unwrap(),
            name: "a".into(),
            incarnation: 1,
            role: Role::Node,
            zone: None,
        };
        let mut bytes = encode_hello(&hello).to_vec();
        bytes[HEADER + 5] = 9;
        assert_eq!(decode(&Bytes::from(bytes.clone())), Err(Error::Version { found: 9 }));
        bytes[HEADER] = b'x';
        assert_eq!(decode(&Bytes::from(bytes)), Err(Error::Magic));
        assert!(matches!(parse_header(*b"GET /"), Err(Error::Kind(b'/'))));
    }

    #[test]
    fn a_list_past_its_bound_is_malformed() {
        let message = Message::Have {
            digest: Digest::of(b""),
            pieces: vec![1; super::super::message::MAX_LIST + 1].into(),
            count: 1,
        };
        let body = Bytes::from(postcard::to_stdvec(&message).unwrap());
        assert_eq!(parse_body(Kind::Control, body), Err(Error::Malformed(Kind::Control)));
    }
}
