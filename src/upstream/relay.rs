//! The links that all devices of a connection share, over one session: one that leads anywhere, where the peer relays
//! (AMQP anonymous terminus: the message's own `to` counts), else one for each address, a bounded number of them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::Unsettled;
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::Open;
use fieldgate_mappings::address::Address;

use crate::router::arena::{Arena, Key};
use crate::table::Table;

use super::device::Device;
use super::outlet::{InFlight, OutLink};
use super::owed::Owed;

/// What a peer offers in its `open` that relays.
const ANONYMOUS_RELAY: &str = "ANONYMOUS-RELAY";
/// How long a session that the peer has ended is not begun again.
const PAUSE: Duration = Duration::from_secs(1);

/// The links, and what goes over them.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) session: Option<SessionId>,
    pub(super) unsettled: Unsettled<InFlight>,
    max_links: usize,
    /// The peer relays: no link but one.
    anonymous: bool,
    links: Arena<SharedLink>,
    by_id: Table<LinkId, Key<SharedLink>>,
    by_address: HashMap<Address, Key<SharedLink>>,
    /// The one that leads anywhere.
    anywhere: Option<Key<SharedLink>>,
    /// Counts uses: the link with the least was used the longest ago.
    uses: u64,
    again_at: Option<Instant>,
    pub(super) owed: Owed,
}

#[derive(Debug)]
struct SharedLink {
    /// None: it leads anywhere.
    address: Option<Address>,
    link: OutLink,
    in_flight: usize,
    /// Who waits for its credit, each in its turn.
    line: VecDeque<Key<Device>>,
    used: u64,
    /// When it was attached, as uses count.
    since: u64,
    /// Nothing more goes over it: others wait for a link for longer than it has been there.
    leaves: bool,
}

/// A link that makes place.
#[derive(Debug)]
pub(super) struct Recycled {
    pub(super) link: LinkId,
    pub(super) address: Option<Address>,
    /// Who waits for it still.
    pub(super) line: VecDeque<Key<Device>>,
}

/// A link that is gone.
#[derive(Debug)]
pub(super) struct Lost {
    /// Where it led; none where it led anywhere.
    pub(super) address: Option<Address>,
    /// The hub had such a node.
    pub(super) attached: bool,
    /// Who sent what was in flight over it, once for each message.
    pub(super) sent_by: Vec<Key<Device>>,
}

impl Relay {
    pub(super) fn new(max_links: usize) -> Self {
        Self {
            session: None,
            unsettled: Unsettled::new(),
            max_links,
            anonymous: false,
            links: Arena::default(),
            by_id: Table::default(),
            by_address: HashMap::new(),
            anywhere: None,
            uses: 0,
            again_at: None,
            owed: Owed::default(),
        }
    }

    /// The peer has opened the connection.
    pub(super) fn opened(&mut self, open: &Open) {
        self.anonymous = open.offered_capabilities().any(|offered| offered == ANONYMOUS_RELAY);
    }

    fn key(&self, address: &Address) -> Option<Key<SharedLink>> {
        self.anywhere.or_else(|| self.by_address.get(address).copied())
    }

    /// The link for an address, with what is in flight over all of them.
    pub(super) fn link(&mut self, address: &Address) -> Option<(&mut OutLink, &mut Unsettled<InFlight>)> {
        let key = self.key(address)?;
        let link = self.links.get_mut(key).filter(|link| !link.leaves)?;
        self.uses += 1;
        link.used = self.uses;
        Some((&mut link.link, &mut self.unsettled))
    }

    /// Whether nobody waits for the credit of the link for an address.
    pub(super) fn is_free(&self, address: &Address) -> bool {
        self.key(address)
            .and_then(|key| self.links.get(key))
            .is_some_and(|link| link.line.is_empty() && !link.leaves)
    }

    /// Whether there is a link for an address.
    pub(super) fn leads_to(&self, address: &Address) -> bool {
        self.key(address).is_some()
    }

    /// A message went over the link for an address.
    pub(super) fn sent(&mut self, address: &Address) {
        if let Some(link) = self.key(address).and_then(|key| self.links.get_mut(key)) {
            link.in_flight += 1;
        }
    }

    /// A message over this link has its outcome.
    pub(super) fn settled(&mut self, link: LinkId) {
        if let Some(link) = self.find(link) {
            link.in_flight = link.in_flight.saturating_sub(1);
        }
    }

    /// Puts a device behind those that wait for the credit of the link for an address.
    pub(super) fn stand_in_line(&mut self, address: &Address, device: Key<Device>) -> bool {
        let link = self.key(address).and_then(|key| self.links.get_mut(key));
        link.map(|link| link.line.push_back(device)).is_some()
    }

    /// Takes those out of the line whose turn has come, as many as may send now. `wants` is told who leaves the line of the
    /// link for which address, and says whether it would send.
    pub(super) fn admit(
        &mut self,
        connection: &Connection,
        link: LinkId,
        mut wants: impl FnMut(Key<Device>, Option<&Address>) -> bool,
    ) -> Vec<Key<Device>> {
        let waited = self.find(link).filter(|shared| !shared.line.is_empty() && !shared.leaves);
        let Some(shared) = waited.filter(|shared| shared.link.has_credit(connection)) else {
            return Vec::new();
        };
        let credit = connection.link(link).map_or(0, |link| link.credit);
        let credit = usize::try_from(credit).unwrap_or(usize::MAX);
        let mut admitted = Vec::new();
        while admitted.len() < credit
            && let Some(key) = shared.line.pop_front()
        {
            // Credit is not for those who have given up, or are gone.
            if wants(key, shared.address.as_ref()) {
                admitted.push(key);
            }
        }
        admitted
    }

    /// The links by their ids.
    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.by_id.iter().map(|(id, _)| id).collect()
    }

    fn find(&mut self, link: LinkId) -> Option<&mut SharedLink> {
        self.links.get_mut(*self.by_id.get(link)?)
    }

    /// The sending end of one of the links.
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut OutLink> {
        self.find(link).map(|shared| &mut shared.link)
    }

    /// Whether the link is one of these.
    pub(super) fn owns(&self, link: LinkId) -> bool {
        self.by_id.get(link).is_some()
    }

    fn take(&mut self, key: Key<SharedLink>) -> Option<SharedLink> {
        let gone = self.links.remove(key)?;
        self.by_id.remove(gone.link.id());
        match &gone.address {
            Some(address) => drop(self.by_address.remove(address)),
            None => self.anywhere = None,
        }
        Some(gone)
    }

    /// Whether one link has to go before another can be attached for this address.
    pub(super) fn is_full_for(&self, address: &Address) -> bool {
        !self.leads_to(address) && self.by_id.len() >= self.max_links
    }

    /// Attaches the link for an address, if there is none, and begins the session.
    ///
    /// # Errors
    /// `NoChannel` and `NoHandle` where there is no room now.
    pub(super) fn attach(
        &mut self,
        connection: &mut Connection,
        prefix: &str,
        address: &Address,
        now: Instant,
    ) -> Result<(), Misuse> {
        if self.leads_to(address) {
            return Ok(());
        }
        if self.again_at.is_some_and(|again| again > now) || self.by_id.len() >= self.max_links {
            return Err(Misuse::NoHandle);
        }
        let session = match self.session {
            Some(session) => session,
            None => *self.session.insert(connection.begin()?),
        };
        let named = format!("{prefix}{}", address.as_str());
        let target = (!self.anonymous).then_some(named.as_str());
        let link = OutLink::attach(connection, session, target)?;
        let address = (!self.anonymous).then(|| address.clone());
        self.uses += 1;
        let id = link.id();
        let line = VecDeque::new();
        let since = self.uses;
        let shared = SharedLink {
            address: address.clone(),
            link,
            in_flight: 0,
            line,
            used: since,
            since,
            leaves: false,
        };
        let key = self.links.insert(shared);
        self.by_id.insert(id, key);
        match address {
            Some(address) => drop(self.by_address.insert(address, key)),
            None => self.anywhere = Some(key),
        }
        Ok(())
    }

    /// Nothing is attached for a while: the hub wants that, or has no room.
    pub(super) fn pause(&mut self, time: Option<Duration>, now: Instant) {
        self.again_at = self.again_at.max(Some(now + time.unwrap_or(PAUSE)));
    }

    /// Nothing more goes over the link that has been there for longest, where all that there may be are in use: others
    /// wait for one.
    pub(super) fn ask_to_leave(&mut self) {
        let full = self.anywhere.is_none() && self.by_id.len() >= self.max_links;
        if full && self.links.iter().all(|(_, link)| !link.leaves) {
            let oldest = self.links.iter_mut().min_by_key(|(_, link)| link.since);
            oldest.into_iter().for_each(|(_, link)| link.leaves = true);
        }
    }

    /// Takes the link out that was asked to leave, once nothing is in flight over it.
    pub(super) fn take_left(&mut self) -> Option<Recycled> {
        let (key, _) = self.links.iter().find(|(_, link)| link.leaves && link.in_flight == 0)?;
        let SharedLink { address, link, line, .. } = self.take(key)?;
        Some(Recycled { link: link.id(), address, line })
    }

    /// Takes the link out that nobody uses or is about to use, and nobody has used for longest.
    pub(super) fn recycle(&mut self, promised: &HashSet<Address>) -> Option<LinkId> {
        let is_promised = |link: &SharedLink| link.address.as_ref().is_some_and(|it| promised.contains(it));
        let idle = self
            .links
            .iter()
            .filter(|(_, link)| link.in_flight == 0 && link.line.is_empty() && !is_promised(link));
        let (key, _) = idle.min_by_key(|(_, link)| link.used)?;
        self.take(key).map(|gone| gone.link.id())
    }

    /// A link is gone: what was sent over it stays unanswered.
    pub(super) fn lose_link(&mut self, link: LinkId) -> Option<Lost> {
        let key = *self.by_id.get(link)?;
        let mut sent_by = Vec::new();
        self.unsettled.lose_link(link, |_, in_flight| sent_by.push(in_flight.device));
        self.take(key).map(|gone| Lost { attached: gone.link.attached, address: gone.address, sent_by })
    }

    /// The session is gone: what was sent stays unanswered. With `now` it is not begun again at once.
    pub(super) fn lose_session(&mut self, now: Option<Instant>) {
        self.session = None;
        self.links = Arena::default();
        self.by_id = Table::default();
        self.by_address.clear();
        self.anywhere = None;
        self.again_at = now.and_then(|now| self.again_at.max(Some(now + PAUSE)));
        self.owed = Owed::default();
        self.unsettled.lose_all().for_each(drop);
    }
}
