//! The HTTP device API at the wire: request heads judged and decoded, replies, without I/O.
