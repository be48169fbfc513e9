//! The numeric descriptors of AMQP 1.0, and their symbolic names.

/// No descriptor of the specification: a symbolic one that it does not define.
pub const UNKNOWN: u64 = 0;
/// `open` (2.7.1).
pub const OPEN: u64 = 0x10;
/// `begin` (2.7.2).
pub const BEGIN: u64 = 0x11;
/// `attach` (2.7.3).
pub const ATTACH: u64 = 0x12;
/// `flow` (2.7.4).
pub const FLOW: u64 = 0x13;
/// `transfer` (2.7.5).
pub const TRANSFER: u64 = 0x14;
/// `disposition` (2.7.6).
pub const DISPOSITION: u64 = 0x15;
/// `detach` (2.7.7).
pub const DETACH: u64 = 0x16;
/// `end` (2.7.8).
pub const END: u64 = 0x17;
/// `close` (2.7.9).
pub const CLOSE: u64 = 0x18;
/// `error` (2.8.14).
pub const ERROR: u64 = 0x1d;
/// The delivery state `received` (3.4.1).
pub const RECEIVED: u64 = 0x23;
/// The outcome `accepted` (3.4.2).
pub const ACCEPTED: u64 = 0x24;
/// The outcome `rejected` (3.4.3).
pub const REJECTED: u64 = 0x25;
/// The outcome `released` (3.4.4).
pub const RELEASED: u64 = 0x26;
/// The outcome `modified` (3.4.5).
pub const MODIFIED: u64 = 0x27;
/// The terminus `source` (3.5.3).
pub const SOURCE: u64 = 0x28;
/// The terminus `target` (3.5.4).
pub const TARGET: u64 = 0x29;
/// The terminus `coordinator` (4.5.1).
pub const COORDINATOR: u64 = 0x30;
/// `sasl-mechanisms` (5.3.3.1).
pub const SASL_MECHANISMS: u64 = 0x40;
/// `sasl-init` (5.3.3.2).
pub const SASL_INIT: u64 = 0x41;
/// `sasl-challenge` (5.3.3.3).
pub const SASL_CHALLENGE: u64 = 0x42;
/// `sasl-response` (5.3.3.4).
pub const SASL_RESPONSE: u64 = 0x43;
/// `sasl-outcome` (5.3.3.5).
pub const SASL_OUTCOME: u64 = 0x44;
/// The message section `header` (3.2.1).
pub const HEADER: u64 = 0x70;
/// The message section `delivery-annotations` (3.2.2).
pub const DELIVERY_ANNOTATIONS: u64 = 0x71;
/// The message section `message-annotations` (3.2.3).
pub const MESSAGE_ANNOTATIONS: u64 = 0x72;
/// The message section `properties` (3.2.4).
pub const PROPERTIES: u64 = 0x73;
/// The message section `application-properties` (3.2.5).
pub const APPLICATION_PROPERTIES: u64 = 0x74;
/// The message section `data` (3.2.6).
pub const DATA: u64 = 0x75;
/// The message section `amqp-sequence` (3.2.7).
pub const AMQP_SEQUENCE: u64 = 0x76;
/// The message section `amqp-value` (3.2.8).
pub const AMQP_VALUE: u64 = 0x77;
/// The message section `footer` (3.2.9).
pub const FOOTER: u64 = 0x78;

/// The number of a symbolic descriptor, or [`UNKNOWN`].
pub(crate) fn of(name: &str) -> u64 {
    match name {
        "amqp:open:list" => OPEN,
        "amqp:begin:list" => BEGIN,
        "amqp:attach:list" => ATTACH,
        "amqp:flow:list" => FLOW,
        "amqp:transfer:list" => TRANSFER,
        "amqp:disposition:list" => DISPOSITION,
        "amqp:detach:list" => DETACH,
        "amqp:end:list" => END,
        "amqp:close:list" => CLOSE,
        "amqp:error:list" => ERROR,
        "amqp:received:list" => RECEIVED,
        "amqp:accepted:list" => ACCEPTED,
        "amqp:rejected:list" => REJECTED,
        "amqp:released:list" => RELEASED,
        "amqp:modified:list" => MODIFIED,
        "amqp:source:list" => SOURCE,
        "amqp:target:list" => TARGET,
        "amqp:coordinator:list" => COORDINATOR,
        "amqp:sasl-mechanisms:list" => SASL_MECHANISMS,
        "amqp:sasl-init:list" => SASL_INIT,
        "amqp:sasl-challenge:list" => SASL_CHALLENGE,
        "amqp:sasl-response:list" => SASL_RESPONSE,
        "amqp:sasl-outcome:list" => SASL_OUTCOME,
        "amqp:header:list" => HEADER,
        "amqp:delivery-annotations:map" => DELIVERY_ANNOTATIONS,
        "amqp:message-annotations:map" => MESSAGE_ANNOTATIONS,
        "amqp:properties:list" => PROPERTIES,
        "amqp:application-properties:map" => APPLICATION_PROPERTIES,
        "amqp:data:binary" => DATA,
        "amqp:amqp-sequence:list" => AMQP_SEQUENCE,
        "amqp:amqp-value:*" => AMQP_VALUE,
        "amqp:footer:map" => FOOTER,
        _ => UNKNOWN,
    }
}

/// How many fields the specification gives a composite type; 0 for a type that it does not define.
pub(crate) fn field_count(descriptor: u64) -> usize {
    match descriptor {
        OPEN => 10,
        BEGIN => 8,
        ATTACH => 14,
        FLOW | TRANSFER | SOURCE => 11,
        DISPOSITION => 6,
        TARGET => 7,
        DETACH | ERROR | MODIFIED | SASL_INIT => 3,
        RECEIVED | SASL_OUTCOME => 2,
        END | CLOSE | REJECTED | COORDINATOR | SASL_MECHANISMS | SASL_CHALLENGE | SASL_RESPONSE => 1,
        HEADER => 5,
        PROPERTIES => 13,
        _ => 0,
    }
}
