//! The segments of a path or a query, each decoded and kept apart.
//! Not a joined string: a `/` inside a Uri-Path option stays inside its segment and cannot move another.
//! RFC 7252 section 5.10.1.

use std::fmt;

/// Decoded Uri-Path or Uri-Query options in their order: one buffer of text and the ends of the segments in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Segments {
    text: String,
    ends: Vec<u32>,
}

impl Segments {
    /// Room for so many segments of so many bytes together.
    pub(crate) fn with_capacity(segments: usize, bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: Vec::with_capacity(segments) }
    }

    pub(crate) fn push(&mut self, segment: &str) {
        self.text.push_str(segment);
        // A datagram is far below 4 GiB; the saturation can only be reached by a bug, and then shortens a segment.
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }

    /// How many segments there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none. One empty segment is not none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The segment at `index`, counted from 0.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = match index.checked_sub(1) {
            Some(before) => self.ends[before] as usize,
            None => 0,
        };
        self.text.get(start..end)
    }

    /// The segments in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let segment = self.text.get(start..end as usize).unwrap_or_default();
            start = end as usize;
            segment
        })
    }
}

impl<'a> FromIterator<&'a str> for Segments {
    fn from_iter<I: IntoIterator<Item = &'a str>>(segments: I) -> Self {
        let mut all = Self::default();
        for segment in segments {
            all.push(segment);
        }
        all
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_stay_apart_and_in_order() {
        let path: Segments = ["devices", "a/b", "", "é"].into_iter().collect();
        assert_eq!(path.iter().collect::<Vec<_>>(), ["devices", "a/b", "", "é"]);
        assert_eq!(path.len(), 4);
        assert_eq!(path.get(1), Some("a/b"));
        assert_eq!(path.get(2), Some(""));
        assert_eq!(path.get(4), None);
    }

    #[test]
    fn one_empty_segment_is_not_none() {
        assert!(Segments::default().is_empty());
        let root: Segments = [""].into_iter().collect();
        assert!(!root.is_empty());
    }
}
