//! The codec against bytes of the specification, against `serde_amqp` in both directions, and against damage.

use bytes::BytesMut;
use serde_amqp::Value as Theirs;
use serde_amqp::described::Described as TheirDescribed;
use serde_amqp::descriptor::Descriptor;
use serde_amqp::primitives::{Array as TheirArray, OrderedMap, Symbol, Timestamp, Uuid};

use super::*;
use crate::error::{DecodeError, DecodeFault};
use crate::testing::{Random, damaged};

fn check(bytes: &[u8]) -> Result<usize, DecodeError> {
    validate(bytes, &Limits::WIRE)
}

fn fault(bytes: &[u8]) -> DecodeFault {
    check(bytes).unwrap_err().fault
}

fn ours(bytes: &[u8]) -> Value<'_> {
    let (value, len) = Value::decode(bytes, &Limits::WIRE).unwrap();
    assert_eq!(len, bytes.len());
    value
}

fn written(value: &Value<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    value.write(&mut out);
    out
}

/// Our value as one of `serde_amqp`'s.
fn theirs(value: Value<'_>) -> Theirs {
    match value {
        Value::Null => Theirs::Null,
        Value::Bool(value) => Theirs::Bool(value),
        Value::Ubyte(value) => Theirs::Ubyte(value),
        Value::Ushort(value) => Theirs::Ushort(value),
        Value::Uint(value) => Theirs::Uint(value),
        Value::Ulong(value) => Theirs::Ulong(value),
        Value::Byte(value) => Theirs::Byte(value),
        Value::Short(value) => Theirs::Short(value),
        Value::Int(value) => Theirs::Int(value),
        Value::Long(value) => Theirs::Long(value),
        Value::Float(value) => Theirs::Float(value.into()),
        Value::Double(value) => Theirs::Double(value.into()),
        Value::Decimal32(bytes) => Theirs::Decimal32(bytes.into()),
        Value::Decimal64(bytes) => Theirs::Decimal64(bytes.into()),
        Value::Decimal128(bytes) => Theirs::Decimal128(bytes.into()),
        Value::Char(value) => Theirs::Char(value),
        Value::Timestamp(value) => Theirs::Timestamp(Timestamp::from_milliseconds(value)),
        Value::Uuid(bytes) => Theirs::Uuid(Uuid::from(bytes)),
        Value::Binary(bytes) => Theirs::Binary(bytes.to_vec().into()),
        Value::Str(text) => Theirs::String(text.to_owned()),
        Value::Symbol(text) => Theirs::Symbol(Symbol::from(text)),
        Value::List(list) => Theirs::List(list.iter().map(theirs).collect()),
        Value::Map(map) => Theirs::Map(map.iter().map(|(key, value)| (theirs(key), theirs(value))).collect()),
        Value::Array(array) => Theirs::Array(TheirArray(array.iter().map(theirs).collect())),
        Value::Described(described) => Theirs::Described(Box::new(TheirDescribed {
            descriptor: match described.descriptor() {
                Value::Ulong(code) => Descriptor::Code(code),
                Value::Symbol(name) => Descriptor::Name(Symbol::from(name)),
                other => panic!("{other:?} was not generated"),
            },
            value: theirs(described.value()),
        })),
    }
}

fn random_scalar(kind: usize, random: &mut Random) -> Theirs {
    let bits = random.next();
    let narrow = *random.pick(&[0, 1, -1, 127, -128, 128, bits as i64]);
    match kind {
        0 => Theirs::Bool(bits & 1 == 1),
        1 => Theirs::Ubyte(bits as u8),
        2 => Theirs::Ushort(bits as u16),
        3 => Theirs::Uint(random.uint()),
        4 => Theirs::Ulong(u64::from(random.uint()) << (bits & 32)),
        5 => Theirs::Byte(bits as i8),
        6 => Theirs::Short(bits as i16),
        7 => Theirs::Int(narrow as i32),
        8 => Theirs::Long(narrow),
        9 => Theirs::Float((narrow as f32).into()),
        10 => Theirs::Double((narrow as f64).into()),
        11 => Theirs::Char(*random.pick(&['a', 'é', '漢', '\u{10ffff}'])),
        12 => Theirs::Timestamp(Timestamp::from_milliseconds(narrow)),
        13 => Theirs::Uuid(Uuid::from((u128::from(bits) << 64 | 7).to_be_bytes())),
        14 => Theirs::Binary(random.bytes(300).into()),
        15 => Theirs::String(random.text(150)),
        16 => Theirs::Symbol(Symbol::from(random.ascii(300))),
        17 => Theirs::Decimal32((bits as u32).to_be_bytes().into()),
        18 => Theirs::Decimal64(bits.to_be_bytes().into()),
        19 => Theirs::Decimal128(u128::from(bits).to_be_bytes().into()),
        _ => Theirs::Null,
    }
}

fn random_value(depth: usize, strings: bool, random: &mut Random) -> Theirs {
    match if depth == 0 { 0 } else { random.below(9) } {
        5 => Theirs::List((0..random.below(5)).map(|_| random_value(depth - 1, strings, random)).collect()),
        6 => {
            let pairs = (0..random.below(5)).map(|index| {
                (Theirs::Symbol(Symbol::from(format!("{index}"))), random_value(depth - 1, strings, random))
            });
            Theirs::Map(pairs.collect::<OrderedMap<_, _>>())
        }
        7 => {
            // serde_amqp wrongly writes an array of wide strings in a described value: `encoded` does it.
            let kind =
                *random.pick(if strings { &[3, 7, 14, 15, 16][..] } else { &[0, 2, 3, 4, 7, 9, 11, 13] });
            Theirs::Array(TheirArray((0..random.below(6)).map(|_| random_scalar(kind, random)).collect()))
        }
        8 => Theirs::Described(Box::new(TheirDescribed {
            descriptor: if random.chance(2) {
                Descriptor::Code(random.next() >> random.below(64))
            } else {
                Descriptor::Name(Symbol::from("vendor:thing"))
            },
            value: random_value(depth - 1, strings, random),
        })),
        _ => {
            let kind = random.below(21);
            random_scalar(kind, random)
        }
    }
}

/// `value` in any of its encodings, chosen at random.
fn encoded(value: &Theirs, random: &mut Random) -> Vec<u8> {
    let wide = random.chance(2);
    match value {
        Theirs::Bool(value) if wide => vec![code::BOOLEAN, u8::from(*value)],
        Theirs::Uint(value) if wide => [&[code::UINT], &value.to_be_bytes()[..]].concat(),
        Theirs::Ulong(value) if wide => [&[code::ULONG], &value.to_be_bytes()[..]].concat(),
        Theirs::Int(value) if wide => [&[code::INT], &value.to_be_bytes()[..]].concat(),
        Theirs::Long(value) if wide => [&[code::LONG], &value.to_be_bytes()[..]].concat(),
        Theirs::Binary(bytes) => sized(code::BINARY8, wide, None, bytes),
        Theirs::String(text) => sized(code::STR8, wide, None, text.as_bytes()),
        Theirs::Symbol(symbol) => sized(code::SYM8, wide, None, symbol.as_bytes()),
        Theirs::List(items) => {
            let content: Vec<u8> = items.iter().flat_map(|item| encoded(item, random)).collect();
            sized(code::LIST8, wide, Some(items.len()), &content)
        }
        Theirs::Map(pairs) => {
            let mut content = Vec::new();
            for (key, value) in pairs.iter() {
                content.extend(encoded(key, random));
                content.extend(encoded(value, random));
            }
            sized(code::MAP8, wide, Some(2 * pairs.len()), &content)
        }
        Theirs::Array(array) => {
            let elements: Vec<_> = array.0.iter().map(element).collect();
            let constructor = elements.first().map_or(&[][..], |element| &element[..1]);
            let content: Vec<u8> = constructor
                .iter()
                .chain(elements.iter().flat_map(|element| &element[1..]))
                .copied()
                .collect();
            sized(code::ARRAY8, wide, Some(array.0.len()), &content)
        }
        Theirs::Described(described) => {
            let descriptor = match &described.descriptor {
                Descriptor::Code(code) => Theirs::Ulong(*code),
                Descriptor::Name(name) => Theirs::Symbol(name.clone()),
            };
            let (descriptor, value) = (encoded(&descriptor, random), encoded(&described.value, random));
            [&[code::DESCRIBED][..], &descriptor, &value].concat()
        }
        scalar => serde_amqp::to_vec(scalar).unwrap(),
    }
}

/// An element in the widest encoding of its type, which all elements of an array share.
fn element(value: &Theirs) -> Vec<u8> {
    match value {
        Theirs::Bool(value) => vec![code::BOOLEAN, u8::from(*value)],
        Theirs::Uint(value) => [&[code::UINT], &value.to_be_bytes()[..]].concat(),
        Theirs::Ulong(value) => [&[code::ULONG], &value.to_be_bytes()[..]].concat(),
        Theirs::Int(value) => [&[code::INT], &value.to_be_bytes()[..]].concat(),
        Theirs::Binary(bytes) => sized(code::BINARY8, true, None, bytes),
        Theirs::String(text) => sized(code::STR8, true, None, text.as_bytes()),
        Theirs::Symbol(symbol) => sized(code::SYM8, true, None, symbol.as_bytes()),
        scalar => serde_amqp::to_vec(scalar).unwrap(),
    }
}

/// A value with a size, and a count where there is one, in the form of `short` or the one four times as wide.
fn sized(short: u8, wide: bool, count: Option<usize>, content: &[u8]) -> Vec<u8> {
    let long = wide || content.len() > 254 || count.is_some_and(|count| count > 255);
    let mut out = Vec::new();
    if long {
        out.push(short + 0x10);
        out.extend((content.len() as u32 + if count.is_some() { 4 } else { 0 }).to_be_bytes());
        out.extend(count.into_iter().flat_map(|count| (count as u32).to_be_bytes()));
    } else {
        out.push(short);
        out.push(content.len() as u8 + u8::from(count.is_some()));
        out.extend(count.map(|count| count as u8));
    }
    out.extend_from_slice(content);
    out
}

#[test]
fn every_encoding_of_a_value_is_the_same_value() {
    let mut random = Random::new(5);
    for _ in 0..20_000 {
        let value = random_value(4, true, &mut random);
        let bytes = encoded(&value, &mut random);
        assert_eq!(check(&bytes), Ok(bytes.len()), "{value:?}");
        assert_eq!(theirs(ours(&bytes)), value);
        assert_eq!(serde_amqp::from_slice::<Theirs>(&written(&ours(&bytes))).unwrap(), value);
    }
}

#[test]
fn reads_what_serde_amqp_writes() {
    let mut random = Random::new(1);
    for _ in 0..20_000 {
        let value = random_value(4, false, &mut random);
        let bytes = serde_amqp::to_vec(&value).unwrap();
        assert_eq!(check(&bytes), Ok(bytes.len()), "{value:?}");
        assert_eq!(theirs(ours(&bytes)), value);
        assert_eq!(value_len(&bytes), Some(bytes.len()));
    }
}

#[test]
fn writes_what_serde_amqp_reads() {
    let mut random = Random::new(2);
    for _ in 0..20_000 {
        let value = random_value(4, false, &mut random);
        let bytes = serde_amqp::to_vec(&value).unwrap();
        let again = written(&ours(&bytes));
        assert_eq!(check(&again), Ok(again.len()));
        assert_eq!(serde_amqp::from_slice::<Theirs>(&again).unwrap(), value);
        assert_eq!(ours(&again), ours(&bytes));
    }
}

#[test]
fn every_prefix_of_a_value_is_refused() {
    let mut random = Random::new(3);
    for _ in 0..2_000 {
        let bytes = serde_amqp::to_vec(&random_value(3, false, &mut random)).unwrap();
        for end in 0..bytes.len() {
            assert!(check(&bytes[..end]).is_err());
            assert_eq!(value_len(&bytes[..end]), None);
        }
    }
}

#[test]
fn damage_never_panics_and_what_passes_is_readable() {
    let mut random = Random::new(4);
    let mut passed = 0;
    for _ in 0..60_000 {
        let bytes = encoded(&random_value(3, true, &mut random), &mut random);
        let bytes = damaged(&bytes, &mut random);
        let _ = value_len(&bytes);
        let mut reader = Reader::new(&bytes);
        let _ = (reader.read_bool(), reader.read_u32(), reader.read_descriptor(), reader.read_list());
        let _ = (reader.read_u64(), reader.read_str(), reader.read_symbol(), reader.read_binary());
        if let Ok(len) = check(&bytes) {
            passed += 1;
            assert_eq!(value_len(&bytes), Some(len));
            let value = ours(&bytes[..len]);
            let again = written(&value);
            // Not compared as values, because NaN is not equal to itself.
            assert_eq!(written(&ours(&again)), again, "{bytes:02x?}");
        }
    }
    assert!(passed > 5_000, "the damage leaves too little to look at: {passed}");
}

#[test]
fn each_encoding_of_the_specification() {
    let cases: &[(&[u8], Value<'_>)] = &[
        (b"\x40", Value::Null),
        (b"\x41", Value::Bool(true)),
        (b"\x42", Value::Bool(false)),
        (b"\x56\x01", Value::Bool(true)),
        (b"\x56\x00", Value::Bool(false)),
        (b"\x50\xff", Value::Ubyte(255)),
        (b"\x60\x01\x02", Value::Ushort(0x0102)),
        (b"\x43", Value::Uint(0)),
        (b"\x52\x07", Value::Uint(7)),
        (b"\x70\x00\x00\x00\x07", Value::Uint(7)),
        (b"\x44", Value::Ulong(0)),
        (b"\x53\x07", Value::Ulong(7)),
        (b"\x80\x00\x00\x00\x00\x00\x00\x00\x07", Value::Ulong(7)),
        (b"\x51\xff", Value::Byte(-1)),
        (b"\x61\xff\xfe", Value::Short(-2)),
        (b"\x54\xff", Value::Int(-1)),
        (b"\x71\xff\xff\xff\xff", Value::Int(-1)),
        (b"\x55\xff", Value::Long(-1)),
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff", Value::Long(-1)),
        (b"\x72\x3f\x80\x00\x00", Value::Float(1.0)),
        (b"\x82\x3f\xf0\x00\x00\x00\x00\x00\x00", Value::Double(1.0)),
        (b"\x73\x00\x00\x00\x41", Value::Char('A')),
        (b"\x83\x00\x00\x00\x00\x00\x00\x03\xe8", Value::Timestamp(1000)),
        (
            b"\x98\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
            Value::Uuid([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        ),
        (b"\x74\x00\x00\x00\x01", Value::Decimal32([0, 0, 0, 1])),
        (b"\xa0\x02\x01\x02", Value::Binary(&[1, 2])),
        (b"\xb0\x00\x00\x00\x02\x01\x02", Value::Binary(&[1, 2])),
        (b"\xa1\x02hi", Value::Str("hi")),
        (b"\xb1\x00\x00\x00\x02hi", Value::Str("hi")),
        (b"\xa3\x02hi", Value::Symbol("hi")),
        (b"\xb3\x00\x00\x00\x02hi", Value::Symbol("hi")),
    ];
    for (bytes, value) in cases {
        assert_eq!(ours(bytes), *value);
    }
}

#[test]
fn compounds_of_all_widths_are_equal() {
    let short = ours(b"\xc0\x05\x02\x52\x01\x52\x02");
    let long = ours(b"\xd0\x00\x00\x00\x0e\x00\x00\x00\x02\x70\x00\x00\x00\x01\x70\x00\x00\x00\x02");
    assert_eq!(short, long);
    let Value::List(list) = short else { panic!() };
    assert_eq!(list.iter().collect::<Vec<_>>(), [Value::Uint(1), Value::Uint(2)]);
    assert_eq!(ours(b"\x45"), ours(b"\xc0\x01\x00"));

    let map = ours(b"\xc1\x08\x02\xa3\x01a\xa1\x02hi");
    let Value::Map(map) = map else { panic!() };
    assert_eq!((map.len(), map.value("a"), map.value("b")), (1, Some(Value::Str("hi")), None));

    let array = ours(b"\xe0\x08\x02\xa3\x01a\x03abc");
    let Value::Array(array) = array else { panic!() };
    assert_eq!(array.iter().collect::<Vec<_>>(), [Value::Symbol("a"), Value::Symbol("abc")]);
    // An empty array, with its constructor and without.
    assert_eq!(ours(b"\xe0\x02\x00\xa3"), ours(b"\xe0\x01\x00"));
}

#[test]
fn an_array_of_described_values() {
    let bytes = b"\xe0\x07\x02\x00\x53\x24\x50\x01\x02";
    let Value::Array(array) = ours(bytes) else { panic!() };
    let elements: Vec<_> = array.iter().collect();
    let Value::Described(first) = elements[0] else { panic!() };
    assert_eq!((first.descriptor(), first.value()), (Value::Ulong(0x24), Value::Ubyte(1)));
    assert_eq!(&written(&elements[1])[..], b"\x00\x53\x24\x50\x02");
    assert_eq!(&written(&ours(bytes))[..], bytes);
}

#[test]
fn the_short_form_gives_way_at_its_limits() {
    for content in [0, 1, 253, 254, 255, 256, 70_000] {
        let mut out = BytesMut::new();
        put_list(&mut out, |out| {
            out.extend_from_slice(&vec![code::NULL; content]);
            content
        });
        let limits = Limits { max_items: 100_000, ..Limits::WIRE };
        assert_eq!(validate(&out, &limits), Ok(out.len()));
        assert_eq!(
            out.len() - content,
            if content == 0 {
                1
            } else if content < 255 {
                3
            } else {
                9
            }
        );

        let text = "x".repeat(content);
        let mut out = BytesMut::new();
        put_str(&mut out, &text);
        assert_eq!(out.len(), bytes_len(content));
        assert_eq!(ours(&out), Value::Str(&text));
    }
    for longest in [1, 255, 256, 300] {
        let mut out = BytesMut::new();
        let long = "y".repeat(longest);
        put_symbols(&mut out, &["a", &long]);
        let Value::Array(array) = ours(&out) else { panic!() };
        assert_eq!(array.iter().collect::<Vec<_>>(), [Value::Symbol("a"), Value::Symbol(&long)]);
    }
}

#[test]
fn a_symbol_is_always_ascii() {
    let mut out = BytesMut::new();
    put_symbol(&mut out, "café");
    put_symbols(&mut out, &["é", "x"]);
    assert_eq!(&out[..], b"\xa3\x04caf?\xe0\x06\x02\xa3\x01?\x01x");
}

// What follows is hostile.

#[test]
fn nesting_is_bounded() {
    // 2500 described values inside each other: 7.5 kB that overflow the stack of a free recursion.
    let described = [&b"\x00\x53\x01".repeat(2500)[..], b"\x40"].concat();
    assert_eq!(fault(&described), DecodeFault::TooDeep);
    assert_eq!(value_len(&described), Some(described.len()));
    // The same in the place of a descriptor.
    let descriptors = [&b"\x00".repeat(2500)[..], b"\x40\x40"].concat();
    assert_eq!(fault(&descriptors), DecodeFault::TooDeep);
    assert_eq!(value_len(&descriptors), None);

    let mut lists = vec![0x45];
    for depth in 1..=32 {
        let mut out = BytesMut::new();
        put_list(&mut out, |out| {
            out.extend_from_slice(&lists);
            1
        });
        assert!(check(&out).is_ok(), "{depth}");
        lists = out.to_vec();
    }
    let mut out = BytesMut::new();
    put_list(&mut out, |out| {
        out.extend_from_slice(&lists);
        1
    });
    assert_eq!(fault(&out), DecodeFault::TooDeep);

    // Arrays of arrays say their constructor once per level.
    let mut arrays = b"\xe0\x02\x00\x50".to_vec();
    for _ in 0..40 {
        let inner = &arrays[1..];
        arrays = [&[0xf0], &u32::to_be_bytes(inner.len() as u32 + 5)[..], b"\0\0\0\x01", &[arrays[0]], inner]
            .concat();
    }
    assert_eq!(fault(&arrays), DecodeFault::TooDeep);
}

#[test]
fn a_claimed_length_costs_nothing() {
    // 15 bytes before authentication that say they are a symbol of 1 GiB.
    assert_eq!(fault(b"\x00\xb3\x40\x00\x00\x00abcdefghi"), DecodeFault::Truncated);
    assert_eq!(fault(b"\xb0\xff\xff\xff\xff"), DecodeFault::Truncated);
    assert_eq!(fault(b"\xd0\xff\xff\xff\xff\x00\x00\x00\x00"), DecodeFault::Truncated);
    // A list of four thousand million items in no bytes.
    assert_eq!(fault(b"\xd0\x00\x00\x00\x04\xff\xff\xff\xff"), DecodeFault::Truncated);
}

#[test]
fn array_elements_without_bytes_are_counted() {
    for element in [0x40, 0x41, 0x42, 0x43, 0x44, 0x45] {
        let few = [&b"\xf0\x00\x00\x00\x05\x00\x00\x01\x00"[..], &[element]].concat();
        assert!(check(&few).is_ok());
        let many = [&b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff"[..], &[element]].concat();
        assert_eq!(fault(&many), DecodeFault::TooMany);
    }
    assert_eq!(fault(b"\xf0\x00\x00\x00\x06\xff\xff\xff\xff\x50\x00"), DecodeFault::Truncated);
}

#[test]
fn items_are_counted_in_all() {
    let limits = Limits { max_items: 4, ..Limits::WIRE };
    assert!(validate(b"\xc0\x04\x03\x40\x40\x40", &limits).is_ok());
    assert_eq!(validate(b"\xc0\x05\x04\x40\x40\x40\x40", &limits).unwrap_err().fault, DecodeFault::TooMany);
}

#[test]
fn lengths_stay_inside_their_parent() {
    // The inner list says that it is longer than what holds it.
    assert_eq!(fault(b"\xc0\x05\x01\xc0\x09\x01\x40\x40\x40\x40\x40\x40\x40"), DecodeFault::Truncated);
    assert_eq!(fault(b"\xc0\x03\x01\xa1\x09abcdefghij"), DecodeFault::Truncated);
    assert_eq!(fault(b"\xc0\x03\x01\x40\x40"), DecodeFault::Surplus);
    assert_eq!(fault(b"\xc1\x02\x01\x40"), DecodeFault::OddMap);
    assert_eq!(fault(b"\xe0\x04\x01\x50\x01\x02"), DecodeFault::Surplus);
    // A size that has no room for the count.
    assert_eq!(fault(b"\xc0\x00"), DecodeFault::Truncated);
    assert_eq!(fault(b"\xd0\x00\x00\x00\x03\x00\x00\x00"), DecodeFault::Truncated);
}

#[test]
fn content_is_what_its_type_says() {
    assert_eq!(fault(b"\xa1\x02\xc3\x28"), DecodeFault::Utf8);
    assert_eq!(fault(b"\xa3\x02\xc3\xa9"), DecodeFault::Ascii);
    assert_eq!(fault(b"\x56\x02"), DecodeFault::Value("boolean"));
    assert_eq!(fault(b"\x73\x00\x00\xd8\x00"), DecodeFault::Value("char"));
    for unknown in [0x01, 0x3f, 0x46, 0x57, 0x62, 0x75, 0x85, 0x99, 0xa2, 0xb2, 0xc2, 0xd2, 0xe1, 0xf1, 0xff]
    {
        let bytes = [&[unknown], &[0; 32][..]].concat();
        assert_eq!(fault(&bytes), DecodeFault::Constructor(unknown));
    }
}

#[test]
fn an_error_says_where() {
    let error = check(b"\xc0\x06\x02\xa1\x01a\x56\x02").unwrap_err();
    assert_eq!((error.offset, error.to_string()), (7, "the bytes are no boolean, at byte 7".to_owned()));
    let mut reader = Reader::new(b"\x40\x52\x01");
    assert_eq!(reader.read_u32(), Ok(None));
    assert_eq!(reader.read_bool(), Err(DecodeFault::Type { expected: "boolean" }.at(1)));
    assert_eq!((reader.read_u32(), reader.is_empty()), (Ok(Some(1)), true));
    assert_eq!(reader.read_u32(), Err(DecodeFault::Truncated.at(3)));
}
