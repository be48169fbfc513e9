//! Sockets to listen on: one for each worker, on the same port, so that the kernel spreads the devices.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroUsize;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::config::{Listener, MqttListener};

/// A port that cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody else has it.
    #[error(
        "port {port} is in use ({transport} {address}); stop what uses it, or give {setting} another port"
    )]
    InUse {
        /// What in the configuration says so.
        setting: String,
        /// As configured.
        address: SocketAddr,
        /// Its port.
        port: u16,
        /// "tcp" or "udp".
        transport: &'static str,
    },
    /// Anything else: an address that this machine does not have, a port that needs rights.
    #[error("cannot listen on {transport} {address}: {source}; see {setting}{hint}")]
    Refused {
        /// What in the configuration says so.
        setting: String,
        /// As configured.
        address: SocketAddr,
        /// "tcp" or "udp".
        transport: &'static str,
        /// What would be right, or nothing.
        hint: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Pending connections that the kernel keeps for each socket.
const BACKLOG: i32 = 1024;

/// Datagrams wait here while a worker is busy; the kernel may grant less.
const UDP_RECEIVE_BYTES: usize = 4 << 20;

/// One listening socket for each worker, nonblocking, all on the same port; port 0 takes a free one.
///
/// # Errors
/// [`ListenError`], which names the setting.
pub fn tcp(
    section: &str,
    address: SocketAddr,
    workers: NonZeroUsize,
) -> Result<Vec<TcpListener>, ListenError> {
    stream(&format!("[{section}] listen"), address, workers)
}

/// As [`tcp`], for a listener of AMQP devices.
///
/// # Errors
/// [`ListenError`], which names the listener.
pub fn amqp(listener: &Listener, workers: NonZeroUsize) -> Result<Vec<TcpListener>, ListenError> {
    stream(&listener.setting(), listener.address, workers)
}

/// As [`tcp`], for a listener of MQTT devices.
///
/// # Errors
/// [`ListenError`], which names the listener.
pub fn mqtt(listener: &MqttListener, workers: NonZeroUsize) -> Result<Vec<TcpListener>, ListenError> {
    stream(&listener.setting(), listener.address, workers)
}

fn stream(
    setting: &str,
    address: SocketAddr,
    workers: NonZeroUsize,
) -> Result<Vec<TcpListener>, ListenError> {
    let failed = |error| ListenError::new(setting.to_owned(), address, "tcp", error);
    let sockets = shared_port(address, Type::STREAM, Protocol::TCP, workers).map_err(failed)?;
    for socket in &sockets {
        socket.listen(BACKLOG).map_err(failed)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// One UDP socket for each worker, nonblocking, all on the same port; port 0 takes a free one. The kernel sends all
/// datagrams of one peer to the same socket.
///
/// # Errors
/// [`ListenError`], which names the setting.
pub fn udp(section: &str, address: SocketAddr, workers: NonZeroUsize) -> Result<Vec<UdpSocket>, ListenError> {
    let sockets = shared_port(address, Type::DGRAM, Protocol::UDP, workers)
        .map_err(|error| ListenError::new(format!("[{section}] listen"), address, "udp", error))?;
    for socket in &sockets {
        // Best effort: the limit is net.core.rmem_max, and a smaller buffer only loses bursts.
        let _ = socket.set_recv_buffer_size(UDP_RECEIVE_BYTES);
    }
    Ok(sockets.into_iter().map(UdpSocket::from).collect())
}

impl ListenError {
    fn new(setting: String, address: SocketAddr, transport: &'static str, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                return Self::InUse { setting, address, port: address.port(), transport };
            }
            io::ErrorKind::AddrNotAvailable => ", which must name an address of this machine",
            io::ErrorKind::PermissionDenied => ", where ports below 1024 need rights that this user lacks",
            _ => "",
        };
        Self::Refused { setting, address, transport, hint, source }
    }
}

/// Binds without sharing first: with SO_REUSEPORT alone a second process of the same user would quietly get a part of
/// the devices.
fn shared_port(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    workers: NonZeroUsize,
) -> io::Result<Vec<Socket>> {
    let open = |address: SocketAddr, shared: bool| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            // `[::]` and `0.0.0.0` may both be listed, each for its own family.
            socket.set_only_v6(true)?;
        }
        if kind == Type::STREAM {
            // Connections that linger in TIME_WAIT from the last run must not keep the port.
            socket.set_reuse_address(true)?;
        }
        if shared {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    if address.port() != 0 {
        let probe = open(address, false)?;
        if kind == Type::STREAM {
            // Linux lets two sockets with SO_REUSEADDR bind the same port until one of them listens.
            probe.listen(1)?;
        }
    }
    let first = open(address, true)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..workers.get() {
        sockets.push(open(bound, true)?);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::config::Config;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
    const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

    #[test]
    fn all_workers_share_one_free_port() {
        let tcp = tcp("mqtt", ANY, TWO).unwrap();
        assert_eq!(tcp.len(), 2);
        assert_eq!(tcp[0].local_addr().unwrap(), tcp[1].local_addr().unwrap());
        let udp = udp("coap", ANY, TWO).unwrap();
        assert_eq!(udp[0].local_addr().unwrap(), udp[1].local_addr().unwrap());
    }

    #[test]
    fn a_busy_port_names_itself_and_the_setting() {
        let held = tcp("mqtt", ANY, TWO).unwrap();
        let address = held[0].local_addr().unwrap();
        let message = tcp("mqtt", address, TWO).unwrap_err().to_string();
        assert!(message.starts_with(&format!("port {} is in use", address.port())), "{message}");
        assert!(message.contains("[mqtt] listen"), "{message}");

        let held = udp("coap", ANY, TWO).unwrap();
        let message = udp("coap", held[0].local_addr().unwrap(), TWO).unwrap_err().to_string();
        assert!(message.contains("is in use (udp") && message.contains("[coap] listen"), "{message}");
    }

    #[test]
    fn a_listener_for_amqp_is_called_by_its_name() {
        let held = tcp("amqp", ANY, TWO).unwrap();
        let port = held[0].local_addr().unwrap().port();
        let busy = |text: &str| {
            let config = Config::parse("f", text, None).unwrap();
            amqp(&config.listeners[0], TWO).unwrap_err().to_string()
        };
        let short = busy(&format!("[amqp]\nlisten = \"127.0.0.1:{port}\""));
        assert!(short.ends_with("or give [amqp] listen another port"), "{short}");
        let named = busy(&format!("[[listener]]\nname = \"floor\"\nport = {port}"));
        assert!(named.ends_with("or give [[listener]] `floor` another port"), "{named}");
    }

    #[test]
    fn a_port_is_free_again_at_once() {
        let held = tcp("mqtt", ANY, TWO).unwrap();
        let address = held[0].local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        drop(held);
        drop(client);
        tcp("mqtt", address, TWO).unwrap();
    }

    #[test]
    fn a_foreign_address_says_so() {
        let foreign = "192.0.2.1:1883".parse().unwrap();
        let message = tcp("mqtt", foreign, TWO).unwrap_err().to_string();
        assert!(message.contains("an address of this machine"), "{message}");
    }
}
