//! The CoAP wire, server side: a guarded codec and the message layer, without I/O.
