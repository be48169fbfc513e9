//! Our own frames around the performatives that `performative` writes.

use bytes::BytesMut;

use crate::codec::{put_bool, put_composite, put_null, put_uint, put_ushort};
use crate::frame::{FrameKind, put_frame};
use crate::performative::{AmqpError, DispositionOut, FlowOut, TransferOut, descriptor};

/// Bytes of a frame header.
pub(crate) const FRAME_HEADER: usize = 8;
/// What we announce as outgoing-window: nothing that the peer would have to heed.
pub(crate) const OUTGOING_WINDOW: u32 = i32::MAX as u32;

/// Writes a transfer frame.
#[inline]
pub(crate) fn put_transfer(out: &mut BytesMut, channel: u16, transfer: &TransferOut<'_>, payload: &[u8]) {
    out.reserve(FRAME_HEADER + transfer.encoded_len() + payload.len());
    put_frame(out, FrameKind::Amqp, channel, |out| {
        transfer.write(out);
        out.extend_from_slice(payload);
    });
}

/// Writes a flow frame.
pub(crate) fn put_flow(out: &mut BytesMut, channel: u16, flow: &FlowOut<'_>) {
    put_frame(out, FrameKind::Amqp, channel, |out| flow.write(out));
}

/// Writes a disposition frame.
pub(crate) fn put_disposition(out: &mut BytesMut, channel: u16, disposition: &DispositionOut<'_>) {
    put_frame(out, FrameKind::Amqp, channel, |out| disposition.write(out));
}

/// Writes a begin frame.
pub(crate) fn put_begin(
    out: &mut BytesMut,
    channel: u16,
    remote_channel: Option<u16>,
    next_outgoing_id: u32,
    incoming_window: u32,
    handle_max: u32,
) {
    put_frame(out, FrameKind::Amqp, channel, |out| {
        put_composite(out, descriptor::BEGIN, |out| {
            match remote_channel {
                Some(channel) => put_ushort(out, channel),
                None => put_null(out),
            }
            put_uint(out, next_outgoing_id);
            put_uint(out, incoming_window);
            put_uint(out, OUTGOING_WINDOW);
            put_uint(out, handle_max);
            for _ in 0..3 {
                put_null(out);
            }
            8
        });
    });
}

/// Writes a detach frame.
pub(crate) fn put_detach(
    out: &mut BytesMut,
    channel: u16,
    handle: u32,
    closed: bool,
    error: Option<&AmqpError>,
) {
    put_frame(out, FrameKind::Amqp, channel, |out| {
        put_composite(out, descriptor::DETACH, |out| {
            put_uint(out, handle);
            put_bool(out, closed);
            put_error(out, error);
            3
        });
    });
}

/// Writes an end frame.
pub(crate) fn put_end(out: &mut BytesMut, channel: u16, error: Option<&AmqpError>) {
    put_closing(out, channel, descriptor::END, error);
}

/// Writes a close frame.
pub(crate) fn put_close(out: &mut BytesMut, error: Option<&AmqpError>) {
    put_closing(out, 0, descriptor::CLOSE, error);
}

fn put_closing(out: &mut BytesMut, channel: u16, code: u64, error: Option<&AmqpError>) {
    put_frame(out, FrameKind::Amqp, channel, |out| {
        put_composite(out, code, |out| {
            put_error(out, error);
            1
        });
    });
}

fn put_error(out: &mut BytesMut, error: Option<&AmqpError>) {
    match error {
        Some(error) => out.extend_from_slice(error.encoded()),
        None => put_null(out),
    }
}
