//! What a datagram gets that is no request to deliver: RST, an error response, or silence; each with its counter.
//! Not the judgement: `guard` finds what is wrong, this says what follows. RFC 7252 sections 4.2, 4.3, 5.4.1, 5.9.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;

use super::Server;
use super::api::Response;
use super::reply::{self, Reply};
use super::table::{Arrival, Stage};
use crate::codec;
use crate::guard::{self, Flaw, Head};
use crate::message::{Code, MessageId, Type};
use crate::stats::Refusal;

/// What a message needs beside its payload (RFC 7252 section 4.6 allows the same).
const OVERHEAD_BYTES: usize = 128;

impl Server {
    /// Rejects a message: RST for a CON, silence for a NON (RFC 7252 sections 4.2 and 4.3).
    pub(super) fn reject(&mut self, peer: SocketAddr, head: &Head, why: Refusal) {
        self.stats.count(why);
        if head.kind == Type::Confirmable {
            self.transmit(peer, codec::empty(Type::Reset, head.mid));
        }
    }

    /// A request that is not even looked at beyond its token.
    pub(super) fn refuse_too_large(&mut self, address: SocketAddr, head: &Head, datagram: &[u8]) {
        let Ok(token) = guard::token(head, datagram) else {
            return self.reject(address, head, Refusal::Format);
        };
        let arrival = Arrival {
            address,
            mid: head.mid,
            token,
            confirmable: head.kind == Type::Confirmable,
            no_response: 0,
            digest: 0,
            bytes: datagram.len(),
        };
        let mut response = Response::new(Code::REQUEST_ENTITY_TOO_LARGE);
        // RFC 7252 section 5.9.2.9: say what would do.
        response.size1 = u32::try_from(self.config.max_datagram_bytes.saturating_sub(OVERHEAD_BYTES)).ok();
        self.refuse(&arrival, Refusal::TooLarge, response);
    }

    pub(super) fn refuse_method(&mut self, arrival: &Arrival) {
        self.refuse(arrival, Refusal::Method, Response::new(Code::METHOD_NOT_ALLOWED));
    }

    pub(super) fn refuse_flaw(&mut self, arrival: &Arrival, flaw: Flaw) {
        let (why, code) = match flaw {
            Flaw::TooManyOptions(_) => (Refusal::TooManyOptions, Code::BAD_REQUEST),
            Flaw::Option(_) => (Refusal::Option, Code::BAD_OPTION),
            Flaw::Proxy => (Refusal::Proxy, Code::PROXYING_NOT_SUPPORTED),
            Flaw::Text(_) | Flaw::DotSegment => (Refusal::Text, Code::BAD_REQUEST),
        };
        if why == Refusal::Option && !arrival.confirmable {
            return self.stats.count(why); // RFC 7252 section 5.4.1: rejected, and that is silence for a NON.
        }
        self.refuse(arrival, why, Response::new(code).with_diagnostic(flaw.to_string()));
    }

    /// Answers without keeping anything: the same datagram gets the same answer whenever it comes, and a flood of
    /// bad ones costs no memory.
    fn refuse(&mut self, arrival: &Arrival, why: Refusal, response: Response) {
        self.stats.count(why);
        let bytes = self.immediate(arrival, response);
        self.transmit(arrival.address, bytes);
    }

    /// A good request for which there is no room. For a CON the answer is kept: were the next copy of it let in,
    /// the peer would have two answers. A NON is dropped.
    pub(super) fn refuse_busy(&mut self, now: Instant, arrival: &Arrival, why: Refusal) {
        self.stats.count(why);
        if arrival.confirmable {
            let code =
                if why == Refusal::PeerBusy { Code::TOO_MANY_REQUESTS } else { Code::SERVICE_UNAVAILABLE };
            let bytes = self.immediate(arrival, Response::new(code).with_max_age(self.config.busy_max_age));
            self.insert(now, arrival, Stage::Remembered(Reply::keep(&bytes)));
            self.transmit(arrival.address, bytes);
        }
    }

    fn immediate(&mut self, arrival: &Arrival, mut response: Response) -> Bytes {
        let (kind, mid) = if arrival.confirmable {
            (Type::Acknowledgement, arrival.mid)
        } else {
            self.stray_mid = self.stray_mid.wrapping_add(1);
            (Type::NonConfirmable, MessageId(self.stray_mid))
        };
        reply::fit(&mut response, &arrival.token, reply::limit(&self.config, arrival.bytes));
        reply::encode(&response, kind, mid, arrival.token)
    }
}
