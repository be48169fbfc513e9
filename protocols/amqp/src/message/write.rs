//! Writers of message sections. The caller writes them in the order of AMQP 1.0 3.2.

use bytes::BytesMut;

use super::{Header, PropertiesOut};
use crate::codec::{
    Value, put_binary, put_bool, put_composite, put_descriptor, put_map, put_null, put_str, put_symbol,
    put_timestamp, put_ubyte, put_uint,
};
use crate::performative::descriptor;

/// Writes the section `header`.
pub fn put_header(out: &mut BytesMut, header: &Header) {
    let ttl = header.ttl.map(|ttl| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX));
    put_composite(out, descriptor::HEADER, |out| {
        put_bool(out, header.durable);
        put_ubyte(out, header.priority);
        opt(out, ttl, put_uint);
        put_bool(out, header.first_acquirer);
        put_uint(out, header.delivery_count);
        5
    });
}

/// Writes the section `delivery-annotations`, whose keys are symbols.
pub fn put_delivery_annotations<'a>(
    out: &mut BytesMut,
    annotations: impl IntoIterator<Item = (&'a str, Value<'a>)>,
) {
    put_pairs(out, descriptor::DELIVERY_ANNOTATIONS, put_symbol, annotations);
}

/// Writes the section `message-annotations`, whose keys are symbols.
pub fn put_message_annotations<'a>(
    out: &mut BytesMut,
    annotations: impl IntoIterator<Item = (&'a str, Value<'a>)>,
) {
    put_pairs(out, descriptor::MESSAGE_ANNOTATIONS, put_symbol, annotations);
}

/// Writes the section `properties`.
pub fn put_properties(out: &mut BytesMut, properties: &PropertiesOut<'_>) {
    put_composite(out, descriptor::PROPERTIES, |out| {
        opt(out, properties.message_id, |out, id| id.write(out));
        opt(out, properties.user_id, put_binary);
        opt(out, properties.to, put_str);
        opt(out, properties.subject, put_str);
        opt(out, properties.reply_to, put_str);
        opt(out, properties.correlation_id, |out, id| id.write(out));
        opt(out, properties.content_type, put_symbol);
        opt(out, properties.content_encoding, put_symbol);
        opt(out, properties.absolute_expiry_time, put_timestamp);
        opt(out, properties.creation_time, put_timestamp);
        opt(out, properties.group_id, put_str);
        opt(out, properties.group_sequence, put_uint);
        opt(out, properties.reply_to_group_id, put_str);
        13
    });
}

/// Writes the section `application-properties`, whose keys are strings and whose values are of simple types.
pub fn put_application_properties<'a>(
    out: &mut BytesMut,
    properties: impl IntoIterator<Item = (&'a str, Value<'a>)>,
) {
    put_pairs(out, descriptor::APPLICATION_PROPERTIES, put_str, properties);
}

/// Writes one section `data`.
pub fn put_data(out: &mut BytesMut, data: &[u8]) {
    put_descriptor(out, descriptor::DATA);
    put_binary(out, data);
}

/// Writes the section `amqp-value`.
pub fn put_amqp_value(out: &mut BytesMut, value: &Value<'_>) {
    put_descriptor(out, descriptor::AMQP_VALUE);
    value.write(out);
}

fn put_pairs<'a>(
    out: &mut BytesMut,
    section: u64,
    put_key: fn(&mut BytesMut, &str),
    pairs: impl IntoIterator<Item = (&'a str, Value<'a>)>,
) {
    put_descriptor(out, section);
    put_map(out, |out| {
        let mut count = 0;
        for (key, value) in pairs {
            put_key(out, key);
            value.write(out);
            count += 1;
        }
        count
    });
}

fn opt<T>(out: &mut BytesMut, value: Option<T>, put: impl FnOnce(&mut BytesMut, T)) {
    match value {
        Some(value) => put(out, value),
        None => put_null(out),
    }
}
