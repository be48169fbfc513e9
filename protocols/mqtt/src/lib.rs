//! The MQTT 3.1.1 and 5 wire, server side: a guarded codec and the connection machine, without I/O.
