//! What a frame that lies about its lengths makes its receiver allocate. Alone in its process, whose memory it measures.
#![cfg(target_os = "linux")]

use bytes::Bytes;
use deploycore_p2p::core::wire::{Frame, HEADER, Kind, MAX_CONTROL, MAX_HELLO, parse_body};

/// The most address space that the process had, in bytes: what was reserved counts, used or not.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn seeds() -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/frame")).unwrap();
    folder.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

/// A number of the wire's integers: seven bits a byte.
fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[test]
fn no_length_is_believed() {
    let before = peak();
    let (mut tried, mut taken) = (0, 0);
    let mut try_one = |kind: Kind, body: Vec<u8>| {
        tried += 1;
        if let Ok(Frame::Control(_) | Frame::Hello(_)) = parse_body(kind, Bytes::from(body)) {
            taken += 1;
        }
    };
    for seed in seeds() {
        let (kind, longest) = if seed[4] == 0 { (Kind::Hello, MAX_HELLO) } else { (Kind::Control, MAX_CONTROL) };
        let body = &seed[HEADER..];
        for at in 0..body.len().min(80) {
            for lie in [1 << 20, 1 << 31, u64::from(u32::MAX), 1 << 40, 1 << 62, u64::MAX] {
                // In place of the byte there, with what came after it, and with as much as a frame may have.
                let lie = [&body[..at], &number(lie), &body[at + 1..]].concat();
                let mut long = lie.clone();
                try_one(kind, lie);
                if at < 48 {
                    long.resize(longest, 0);
                    try_one(kind, long);
                }
            }
        }
    }
    let grown = peak() - before;
    println!("{tried} bodies, of which {taken} are messages; {} MiB", grown >> 20);
    assert!(tried > 1_000 && taken > 0, "{tried} {taken}");
    assert!(grown <= 256 << 20, "{grown} bytes");
}
