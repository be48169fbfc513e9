//! The names of composite types and of their fields, as the specification writes them.

use crate::performative::descriptor;

/// `declare`, `discharge`, `declared`, `transactional-state` (4.5.2 to 4.5.8), which the engine only passes on.
const DECLARE: u64 = 0x31;
const DISCHARGE: u64 = 0x32;
const DECLARED: u64 = 0x33;
const TRANSACTIONAL_STATE: u64 = 0x34;

const TERMINUS: [&str; 6] =
    ["address", "durable", "expiry-policy", "timeout", "dynamic", "dynamic-node-properties"];

/// The name of a composite type.
pub(super) fn composite(code: u64) -> Option<&'static str> {
    Some(match code {
        descriptor::OPEN => "open",
        descriptor::BEGIN => "begin",
        descriptor::ATTACH => "attach",
        descriptor::FLOW => "flow",
        descriptor::TRANSFER => "transfer",
        descriptor::DISPOSITION => "disposition",
        descriptor::DETACH => "detach",
        descriptor::END => "end",
        descriptor::CLOSE => "close",
        descriptor::ERROR => "error",
        descriptor::RECEIVED => "received",
        descriptor::ACCEPTED => "accepted",
        descriptor::REJECTED => "rejected",
        descriptor::RELEASED => "released",
        descriptor::MODIFIED => "modified",
        descriptor::SOURCE => "source",
        descriptor::TARGET => "target",
        descriptor::COORDINATOR => "coordinator",
        DECLARE => "declare",
        DISCHARGE => "discharge",
        DECLARED => "declared",
        TRANSACTIONAL_STATE => "transactional-state",
        descriptor::SASL_MECHANISMS => "sasl-mechanisms",
        descriptor::SASL_INIT => "sasl-init",
        descriptor::SASL_CHALLENGE => "sasl-challenge",
        descriptor::SASL_RESPONSE => "sasl-response",
        descriptor::SASL_OUTCOME => "sasl-outcome",
        _ => return None,
    })
}

/// The name of a field; `None` beyond those of the specification.
pub(super) fn field(code: u64, index: usize) -> Option<&'static str> {
    let names: &[&str] = match code {
        descriptor::OPEN => &[
            "container-id",
            "hostname",
            "max-frame-size",
            "channel-max",
            "idle-time-out",
            "outgoing-locales",
            "incoming-locales",
            "offered-capabilities",
            "desired-capabilities",
            "properties",
        ],
        descriptor::BEGIN => &[
            "remote-channel",
            "next-outgoing-id",
            "incoming-window",
            "outgoing-window",
            "handle-max",
            "offered-capabilities",
            "desired-capabilities",
            "properties",
        ],
        descriptor::ATTACH => &[
            "name",
            "handle",
            "role",
            "snd-settle-mode",
            "rcv-settle-mode",
            "source",
            "target",
            "unsettled",
            "incomplete-unsettled",
            "initial-delivery-count",
            "max-message-size",
            "offered-capabilities",
            "desired-capabilities",
            "properties",
        ],
        descriptor::FLOW => &[
            "next-incoming-id",
            "incoming-window",
            "next-outgoing-id",
            "outgoing-window",
            "handle",
            "delivery-count",
            "link-credit",
            "available",
            "drain",
            "echo",
            "properties",
        ],
        descriptor::TRANSFER => &[
            "handle",
            "delivery-id",
            "delivery-tag",
            "message-format",
            "settled",
            "more",
            "rcv-settle-mode",
            "state",
            "resume",
            "aborted",
            "batchable",
        ],
        descriptor::DISPOSITION => &["role", "first", "last", "settled", "state", "batchable"],
        descriptor::DETACH => &["handle", "closed", "error"],
        descriptor::END | descriptor::CLOSE | descriptor::REJECTED => &["error"],
        descriptor::ERROR => &["condition", "description", "info"],
        descriptor::RECEIVED => &["section-number", "section-offset"],
        descriptor::MODIFIED => &["delivery-failed", "undeliverable-here", "message-annotations"],
        descriptor::SOURCE => {
            const MORE: [&str; 5] =
                ["distribution-mode", "filter", "default-outcome", "outcomes", "capabilities"];
            let at = index.checked_sub(TERMINUS.len());
            return at.map_or_else(|| Some(TERMINUS[index]), |at| MORE.get(at).copied());
        }
        descriptor::TARGET => {
            return TERMINUS.iter().chain(&["capabilities"]).nth(index).copied();
        }
        descriptor::COORDINATOR => &["capabilities"],
        DECLARE => &["global-id"],
        DISCHARGE => &["txn-id", "fail"],
        DECLARED => &["txn-id"],
        TRANSACTIONAL_STATE => &["txn-id", "outcome"],
        descriptor::SASL_MECHANISMS => &["sasl-server-mechanisms"],
        descriptor::SASL_INIT => &["mechanism", "initial-response", "hostname"],
        descriptor::SASL_CHALLENGE => &["challenge"],
        descriptor::SASL_RESPONSE => &["response"],
        descriptor::SASL_OUTCOME => &["code", "additional-data"],
        _ => &[],
    };
    names.get(index).copied()
}

/// Whether a field holds what SASL exchanges, of which only the size is shown.
pub(super) fn is_sasl_data(code: u64, index: usize) -> bool {
    matches!(
        (code, index),
        (descriptor::SASL_INIT, 1)
            | (descriptor::SASL_CHALLENGE, 0)
            | (descriptor::SASL_RESPONSE, 0)
            | (descriptor::SASL_OUTCOME, 1)
    )
}
