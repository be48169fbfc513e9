//! The AMQP 1.0 wire: codec, connection, session and link machines, without I/O.
