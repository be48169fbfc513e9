//! How connections to a hub carry the messages of mapped devices: the keys that `[upstream]` and `[[connector]]` have
//! in common.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

use super::sections::nonzero;

/// What kind of hub it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Each device has links of its own; claims are put to `$cbs`.
    #[default]
    AzureIotHub,
    /// A broker or router: devices share links, and a message names its own address where the peer relays.
    Amqp,
}

/// The keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// What kind of hub it is.
    pub profile: Profile,
    /// Stands before each address of a rule, as the hub is to see it.
    pub address_prefix: Box<str>,
    /// Links of one connection that devices share, one for each address, where the peer does not relay.
    pub max_links: NonZeroUsize,
    /// A device's session and links are closed when nothing used them for so long, and a connection without devices.
    pub idle_session: Duration,
    /// Messages in a second to the hub, over all workers; absent: as many as the hub takes.
    pub max_messages_per_second: Option<NonZeroU32>,
}

/// Not more names of links than a broker's session has handles for, mostly.
pub(super) const MAX_LINKS: NonZeroUsize = nonzero(200);
pub(super) const IDLE_SESSION: Duration = Duration::from_secs(300);

impl Default for Mapped {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            address_prefix: "".into(),
            max_links: MAX_LINKS,
            idle_session: IDLE_SESSION,
            max_messages_per_second: None,
        }
    }
}
