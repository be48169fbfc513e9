//! Where each entry of the file stands.

/// Where each entry of a file stands.
pub(in crate::devices) struct Entries<'a> {
    text: &'a str,
    /// Bytes before the first entry.
    head: usize,
}

/// One entry's text.
#[derive(Clone, Copy, Debug)]
pub(in crate::devices) struct Piece<'a> {
    pub(in crate::devices) text: &'a str,
    /// Where it begins, in bytes.
    pub(in crate::devices) offset: usize,
    /// The line that it begins on, from 1.
    pub(in crate::devices) line: usize,
}

impl<'a> Entries<'a> {
    /// Of this text.
    pub(in crate::devices) fn of(text: &'a str) -> Self {
        let head = lines(text).find(|(_, line)| is_header(line)).map_or(text.len(), |(at, _)| at);
        Self { text, head }
    }

    /// What stands before the first device.
    pub(super) fn head(&self) -> &'a str {
        &self.text[..self.head]
    }

    /// The entries, in their order.
    pub(in crate::devices) fn iter(&self) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let text = self.text;
        let mut offset = self.head;
        let mut line = text[..offset].matches('\n').count() + 1;
        std::iter::from_fn(move || {
            let rest = text.get(offset..).filter(|rest| !rest.is_empty())?;
            let next = lines(rest).skip(1).find(|(_, line)| is_header(line));
            let piece = Piece { text: &rest[..next.map_or(rest.len(), |(at, _)| at)], offset, line };
            offset += piece.text.len();
            line += piece.text.matches('\n').count();
            Some(piece)
        })
    }
}

/// The lines with where they begin.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let begins = at;
        at += line.len();
        (begins, line)
    })
}

/// Whether a device begins on this line.
fn is_header(line: &str) -> bool {
    let inside = line.trim_start().strip_prefix("[[").and_then(|rest| rest.split_once("]]"));
    inside.is_some_and(|(name, _)| name.trim() == "device")
}
