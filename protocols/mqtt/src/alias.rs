//! Topic aliases (MQTT 5 3.3.2.3.4), each direction with numbers of its own. Both live as long as the connection.

use crate::{reason::Violation, text::Text};

/// The client's aliases.
#[derive(Debug, Default)]
pub(crate) struct IncomingAliases {
    topics: Vec<Option<Text>>,
    bytes: usize,
}

impl IncomingAliases {
    /// Notes what `alias` stands for from now on, with memory of its own.
    pub(crate) fn set(&mut self, alias: u16, topic: &str, bounds: AliasBounds) -> Result<(), Violation> {
        let at = bounds.judge(alias)?;
        let old = self.topics.get(at).and_then(Option::as_ref);
        if old.is_some_and(|old| *old == *topic) {
            return Ok(());
        }
        let bytes = self.bytes - old.map_or(0, |old| old.len()) + topic.len();
        if bytes > bounds.bytes {
            return Err(Violation::Quota("bytes of topic aliases"));
        }
        self.bytes = bytes;
        if self.topics.len() <= at {
            self.topics.resize(at + 1, None);
        }
        self.topics[at] = Some(topic.into());
        Ok(())
    }

    /// What `alias` stands for.
    pub(crate) fn resolve(&self, alias: u16, bounds: AliasBounds) -> Result<Text, Violation> {
        let at = bounds.judge(alias)?;
        let topic = self.topics.get(at).cloned().flatten();
        topic.ok_or(Violation::Protocol("a topic alias that stands for nothing yet"))
    }
}

/// How many aliases a client may have, and how long their topics may be in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AliasBounds {
    pub(crate) maximum: u16,
    pub(crate) bytes: usize,
}

impl AliasBounds {
    /// MQTT 5 3.3.2-8, 3.3.2-9.
    fn judge(self, alias: u16) -> Result<usize, Violation> {
        match alias {
            0 => Err(Violation::TopicAliasInvalid),
            alias if alias > self.maximum => Err(Violation::TopicAliasInvalid),
            alias => Ok(usize::from(alias - 1)),
        }
    }
}

/// A longer topic gets no alias: about what one alias costs in memory, in bytes.
const LONGEST: usize = 256;
/// A topic that is not longer than what an alias adds to the packet that introduces it gets none.
const SHORTEST: usize = 4;

/// Our aliases toward the client: as many as it takes, and not more than we want. The oldest one makes room.
#[derive(Debug, Default)]
pub(crate) struct OutgoingAliases {
    topics: Vec<Box<str>>,
    /// Where the next new one goes.
    next: usize,
}

/// How a PUBLISH of ours says its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alias {
    /// By its name.
    None,
    /// By its name, and from now on by this number.
    New(u16),
    /// By this number.
    Known(u16),
}

impl OutgoingAliases {
    /// How `topic` would be said, if there may be `maximum` aliases.
    pub(crate) fn choose(&self, topic: &str, maximum: u16) -> Alias {
        if maximum == 0 || !(SHORTEST..=LONGEST).contains(&topic.len()) {
            return Alias::None;
        }
        let number = |at: usize| u16::try_from(at + 1).expect("there are at most 65,535");
        match self.topics.iter().position(|known| **known == *topic) {
            Some(at) => Alias::Known(number(at)),
            None => Alias::New(number(self.next % usize::from(maximum))),
        }
    }

    /// The PUBLISH is on its way.
    pub(crate) fn said(&mut self, topic: &str, alias: Alias) {
        let Alias::New(number) = alias else { return };
        let at = usize::from(number - 1);
        match self.topics.get_mut(at) {
            Some(old) => *old = topic.into(),
            None => self.topics.push(topic.into()),
        }
        self.next = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: AliasBounds = AliasBounds { maximum: 2, bytes: 5 };

    #[test]
    fn the_clients_aliases() {
        let mut aliases = IncomingAliases::default();
        assert_eq!(aliases.resolve(0, BOUNDS), Err(Violation::TopicAliasInvalid));
        assert_eq!(aliases.resolve(3, BOUNDS), Err(Violation::TopicAliasInvalid));
        assert!(matches!(aliases.resolve(2, BOUNDS), Err(Violation::Protocol(_))));
        aliases.set(2, "abc", BOUNDS).expect("room");
        assert!(matches!(aliases.resolve(1, BOUNDS), Err(Violation::Protocol(_))));
        aliases.set(2, "de", BOUNDS).expect("takes its place");
        aliases.set(1, "xyz", BOUNDS).expect("room");
        assert_eq!(aliases.resolve(2, BOUNDS), Ok("de".into()));
        assert_eq!(aliases.set(2, "def", BOUNDS), Err(Violation::Quota("bytes of topic aliases")));
        assert_eq!(aliases.set(3, "", BOUNDS), Err(Violation::TopicAliasInvalid));
    }

    #[test]
    fn our_aliases_make_room_for_each_other() {
        let mut aliases = OutgoingAliases::default();
        let mut say = |topic| {
            let alias = aliases.choose(topic, 2);
            aliases.said(topic, alias);
            alias
        };
        assert_eq!([say("aaaa"), say("bbbb"), say("aaaa")], [Alias::New(1), Alias::New(2), Alias::Known(1)]);
        assert_eq!([say("cccc"), say("aaaa"), say("bbbb")], [Alias::New(1), Alias::New(2), Alias::New(1)]);
        assert_eq!([say("abc"), say(&"x".repeat(257))], [Alias::None, Alias::None]);
        assert_eq!(aliases.choose("aaaa", 0), Alias::None);
    }
}
