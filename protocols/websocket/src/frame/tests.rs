use std::io::{self, Cursor, Read, Write};

use tungstenite::protocol::{Role as TheirRole, WebSocket, WebSocketConfig};
use tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::*;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn decoded(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<u8>, Violation> {
    let mut bytes = bytes.to_vec();
    let kept = decoder.decode(&mut bytes)?;
    bytes.truncate(kept);
    Ok(bytes)
}

/// As [`decoded`], in pieces of this length.
fn in_pieces(decoder: &mut Decoder, bytes: &[u8], length: usize) -> Result<Vec<u8>, Violation> {
    let mut all = Vec::new();
    for piece in bytes.chunks(length) {
        all.extend(decoded(decoder, piece)?);
    }
    Ok(all)
}

#[test]
fn the_examples_of_the_specification() {
    // RFC 6455 5.7, with binary in place of text.
    let unmasked = [0x82, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
    assert_eq!(decoded(&mut Decoder::new(Role::Client), &unmasked), Ok(b"Hello".to_vec()));
    let masked = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decoded(&mut Decoder::new(Role::Server), &masked), Ok(b"Hello".to_vec()));
    let parts = [0x02, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f];
    assert_eq!(decoded(&mut Decoder::new(Role::Client), &parts), Ok(b"Hello".to_vec()));
    let ping = [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
    let mut decoder = Decoder::new(Role::Client);
    assert_eq!(decoded(&mut decoder, &ping), Ok(vec![]));
    assert_eq!(decoder.take_pong(), Some(b"Hello".to_vec()));
    let mut long = vec![0x82, 0x7e, 0x01, 0x00];
    long.extend([7; 256]);
    assert_eq!(decoded(&mut Decoder::new(Role::Client), &long), Ok(vec![7; 256]));

    let mut encoder = Encoder::new(Role::Client);
    let mut out = Vec::new();
    encoder.encode(b"Hello", || KEY, &mut out);
    assert_eq!(out, masked);
    assert_eq!(encoder.written(out.len()), 5);
    let mut encoder = Encoder::new(Role::Server);
    encoder.pong(b"Hello", || KEY);
    out.clear();
    encoder.encode(b"Hello", || KEY, &mut out);
    assert_eq!(out, [&[0x8a, 0x05][..], b"Hello", &unmasked].concat());
}

#[test]
fn a_control_frame_may_stand_between_the_parts_of_a_message() {
    let bytes = [
        0x02, 0x01, b'a', 0x89, 0x02, b'h', b'i', 0x00, 0x00, 0x8a, 0x00, 0x80, 0x01, b'b', 0x82, 0x01, b'c',
    ];
    for length in 1..=bytes.len() {
        let mut decoder = Decoder::new(Role::Client);
        assert_eq!(in_pieces(&mut decoder, &bytes, length), Ok(b"abc".to_vec()), "{length}");
        assert_eq!(decoder.take_pong(), Some(b"hi".to_vec()));
        assert_eq!(decoder.take_pong(), None);
    }
}

#[test]
fn what_breaks_a_rule_ends_the_connection() {
    let masked_ping = |length: u8| {
        let mut bytes = vec![0x89, 0x80 | 126, 0, length];
        bytes.extend([0; 4]);
        bytes
    };
    for (role, bytes, violation) in [
        (Role::Client, vec![0xc2, 0x00], Violation::Reserved),
        (Role::Client, vec![0x92, 0x00], Violation::Reserved),
        (Role::Client, vec![0x83, 0x00], Violation::Opcode(3)),
        (Role::Client, vec![0x8b, 0x00], Violation::Opcode(11)),
        (Role::Client, vec![0x81, 0x00], Violation::Text),
        (Role::Client, vec![0x01, 0x01], Violation::Text),
        (Role::Client, vec![0x82, 0x80, 0, 0, 0, 0], Violation::Masked),
        (Role::Server, vec![0x82, 0x00], Violation::Unmasked),
        (Role::Server, masked_ping(126), Violation::Control),
        (Role::Server, masked_ping(125), Violation::Length),
        (Role::Client, vec![0x09, 0x00], Violation::Control),
        (Role::Client, vec![0x82, 126, 0, 125], Violation::Length),
        (Role::Client, vec![0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Violation::Length),
        (Role::Client, vec![0x82, 127, 0x80, 0, 0, 0, 0, 1, 0, 0], Violation::Length),
        (Role::Client, vec![0x80, 0x00], Violation::Fragments),
        (Role::Client, vec![0x02, 0x00, 0x82, 0x00], Violation::Fragments),
        (Role::Client, vec![0x88, 0x01, 3], Violation::Close),
        (Role::Client, vec![0x88, 0x02, 0x03, 0xed], Violation::Close),
        (Role::Client, vec![0x88, 0x03, 0x03, 0xe8, 0xff], Violation::Close),
    ] {
        for length in [1, bytes.len()] {
            assert_eq!(in_pieces(&mut Decoder::new(role), &bytes, length), Err(violation), "{bytes:?}");
        }
    }
    assert_eq!((Violation::Text.close_code(), Violation::Masked.close_code()), (1003, 1002));
}

#[test]
fn nothing_is_read_behind_a_close() {
    let mut decoder = Decoder::new(Role::Client);
    assert_eq!(
        decoded(&mut decoder, &[0x82, 1, b'a', 0x88, 0x02, 0x03, 0xe8, 0x82, 1, b'b', 0xff]),
        Ok(b"a".to_vec())
    );
    assert_eq!(decoder.close_code(), Some(1000));
    assert_eq!(decoded(&mut decoder, &[0xff; 9]), Ok(vec![]));
    let mut bare = Decoder::new(Role::Client);
    assert_eq!(decoded(&mut bare, &[0x88, 0x00]), Ok(vec![]));
    assert_eq!(bare.close_code(), Some(1005));
}

#[test]
fn a_length_near_the_end_of_numbers_costs_nothing() {
    let mut decoder = Decoder::new(Role::Client);
    let head = [0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(decoded(&mut decoder, &head), Ok(vec![]));
    assert_eq!(decoded(&mut decoder, &[9; 100]), Ok(vec![9; 100]));
    assert!(size_of::<Decoder>() + size_of::<Encoder>() <= 256);
}

#[test]
fn a_frame_is_owed_whole_and_control_waits_for_its_end() {
    let mut encoder = Encoder::new(Role::Client);
    let mut decoder = Decoder::new(Role::Server);
    let payload: Vec<u8> = (0..40_000).map(|n| n as u8).collect();
    let (mut sent, mut heard, mut step) = (0, Vec::new(), 1);
    let mut keys = 0_u32;
    while sent < payload.len() {
        let mut out = Vec::new();
        let mut key = || {
            keys += 1;
            keys.wrapping_mul(0x9e37_79b9).to_be_bytes()
        };
        encoder.encode(&payload[sent..], &mut key, &mut out);
        if encoder.is_within_frame() {
            encoder.pong(b"late", &mut key);
        }
        // What was not taken is encoded again, and the same.
        let mut again = Vec::new();
        if encoder.is_within_frame() {
            encoder.encode(&payload[sent..], &mut key, &mut again);
            assert_eq!(out, again);
        }
        let taken = step % 777 % (out.len() + 1);
        step += 131;
        sent += encoder.written(taken);
        heard.extend(decoded(&mut decoder, &out[..taken]).unwrap());
    }
    assert!(heard == payload && !encoder.is_within_frame());
    let mut out = Vec::new();
    encoder.close(1000, || KEY);
    encoder.encode(b"nothing follows", || KEY, &mut out);
    assert_eq!(encoder.written(out.len()), 0);
    decoded(&mut decoder, &out).unwrap();
    assert_eq!((decoder.close_code(), encoder.is_closed(), encoder.has_control()), (Some(1000), true, false));
}

/// What the other implementation reads, and where it writes.
#[derive(Default)]
struct Pipe {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buf)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An independent implementation, tungstenite, understands us and is understood, in both roles.
#[test]
fn another_implementation_agrees() {
    for (ours, theirs) in [(Role::Client, TheirRole::Server), (Role::Server, TheirRole::Client)] {
        let mut other = WebSocket::from_raw_socket(Pipe::default(), theirs, Some(WebSocketConfig::default()));
        let (mut encoder, mut decoder) = (Encoder::new(ours), Decoder::new(ours));
        let lengths =
            [1, 2, 125, 126, 127, 128, 1000, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, 65_535, 65_536, 100_000];
        for (nth, length) in lengths.into_iter().enumerate() {
            let payload: Vec<u8> = (0..length).map(|n| (n * 7 + nth) as u8).collect();
            // To them.
            let (mut sent, mut wire) = (0, Vec::new());
            encoder.pong(b"unasked", || KEY);
            while sent < length {
                let mut out = Vec::new();
                encoder.encode(&payload[sent..], || KEY, &mut out);
                sent += encoder.written(out.len());
                wire.extend(out);
            }
            other.get_mut().input = Cursor::new(wire);
            let mut heard = Vec::new();
            while heard.len() < length {
                match other.read().unwrap() {
                    Message::Binary(bytes) => heard.extend(bytes),
                    Message::Pong(bytes) => assert_eq!(&bytes[..], b"unasked"),
                    more => panic!("{more:?}"),
                }
            }
            assert!(heard == payload, "{length}");
            // From them.
            other.send(Message::Ping(b"there?".to_vec().into())).unwrap();
            other.send(Message::Binary(payload.clone().into())).unwrap();
            let wire = std::mem::take(&mut other.get_mut().output);
            assert!(in_pieces(&mut decoder, &wire, 1 + nth * 37).unwrap() == payload, "{length}");
            assert_eq!(decoder.take_pong(), Some(b"there?".to_vec()));
        }
        // The goodbye, begun by us.
        let mut out = Vec::new();
        encoder.close(1000, || KEY);
        encoder.encode(&[], || KEY, &mut out);
        encoder.written(out.len());
        other.get_mut().input = Cursor::new(out);
        assert!(
            matches!(other.read().unwrap(), Message::Close(Some(frame)) if frame.code == CloseCode::Normal)
        );
        let _ = other.flush();
        let wire = std::mem::take(&mut other.get_mut().output);
        decoded(&mut decoder, &wire).unwrap();
        assert_eq!(decoder.close_code(), Some(1000));
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut byte = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as u8
    };
    for round in 0..20_000 {
        let role = if round % 2 == 0 { Role::Client } else { Role::Server };
        let mut decoder = Decoder::new(role);
        for _ in 0..4 {
            let mut bytes: Vec<u8> = (0..1 + byte() % 40).map(|_| byte()).collect();
            // Mostly what could be a frame.
            bytes[0] = if round % 3 == 0 {
                byte()
            } else {
                [0x82, 0x02, 0x80, 0x89, 0x8a, 0x88][usize::from(byte() % 6)]
            };
            match decoder.decode(&mut bytes) {
                Ok(kept) => assert!(kept <= bytes.len()),
                Err(_) => break,
            }
        }
    }
}
