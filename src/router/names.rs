//! Names of links toward a hub.
//!
//! Many devices share a hub connection, and many of them call their links the same: the name toward the hub is made of
//! all that tells them apart. It is the same again after a reconnect, so that what a hub keeps by a link's name
//! (subscriptions, unsettled deliveries) is found again, and it begins with the device's own name, for whoever reads
//! the hub's logs.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldgate_amqp::performative::Role;
use ring::digest;

/// So much of the device's own name is kept, in bytes.
const READABLE_BYTES: usize = 64;
/// So much of the digest: two of 2^64 names being the same is not to be feared.
const DIGEST_BYTES: usize = 16;

/// The name toward the hub of the link that a device calls `name`.
///
/// `identity` is who the device was proven to be, `container` the container-id of its `open`, `role` the device's.
pub(crate) fn upstream_link_name(identity: Option<&str>, container: &str, name: &str, role: Role) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    // With its length before each part no two lists of parts are the same bytes.
    for part in [identity.unwrap_or_default(), container, name] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(&[u8::from(identity.is_some()), u8::from(role.is_receiver())]);
    let digest = hash.finish();
    let mut text = String::with_capacity(READABLE_BYTES + 1 + DIGEST_BYTES * 4 / 3 + 2);
    let readable = &name[..name.floor_char_boundary(READABLE_BYTES)];
    text.extend(readable.chars().filter(|character| !character.is_control()));
    text.push('@');
    URL_SAFE_NO_PAD.encode_string(&digest.as_ref()[..DIGEST_BYTES], &mut text);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn name(identity: Option<&str>, container: &str, name: &str) -> String {
        upstream_link_name(identity, container, name, Role::Sender)
    }

    #[test]
    fn a_name_is_the_same_every_time_and_readable() {
        let first = name(Some("d1"), "container", "telemetry");
        assert_eq!(first, name(Some("d1"), "container", "telemetry"));
        assert!(first.starts_with("telemetry@"), "{first}");
        // Kept as it is: what hubs remember by name would be lost with a change.
        assert_eq!(first, PINNED);
    }

    #[test]
    fn whatever_differs_makes_another_name() {
        let mut names = HashSet::new();
        for identity in [None, Some(""), Some("a"), Some("ab")] {
            for container in ["", "a", "ab", "b"] {
                for link in ["", "a", "b", "ba", "@", "a@b"] {
                    for role in [Role::Sender, Role::Receiver] {
                        assert!(names.insert(upstream_link_name(identity, container, link, role)));
                    }
                }
            }
        }
    }

    #[test]
    fn long_and_odd_names_are_clipped_and_stay_apart() {
        let long = "é".repeat(10_000);
        let (a, b) = (name(None, "c", &format!("{long}a")), name(None, "c", &format!("{long}b")));
        assert_ne!(a, b);
        assert!(a.len() <= READABLE_BYTES + 23 && a.starts_with("éé"), "{a}");
        assert!(!name(None, "c", "a\n\u{0}b\u{7f}").contains(char::is_control));
        assert_ne!(name(None, "c", "a\nb"), name(None, "c", "ab"));
    }

    const PINNED: &str = "telemetry@2t5f00pWtwWRNvBSapcZBA";
}
