//! Devices that ask and are answered: CoAP and HTTP.

use std::net::SocketAddr;
use std::time::Instant;

use fieldgate_coap::Method;
use fieldgate_coap::client::{Call, Client, Conclusion, Config, Outcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// A CoAP device, and what it has heard.
pub(crate) struct Coap {
    pub(crate) socket: UdpSocket,
    client: Client,
}

/// The first two bytes of a datagram: what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An acknowledgement without a response.
    EmptyAck,
    /// A response in an acknowledgement.
    Piggybacked,
    /// A response in a confirmable message of its own.
    Separate,
    /// A response in a non-confirmable message.
    Non,
}

/// A CoAP answer, as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoapAnswer {
    pub(crate) code: String,
    pub(crate) has_max_age: bool,
}

impl Coap {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = UdpSocket::bind((address.ip(), 0)).await.unwrap();
        socket.connect(address).await.unwrap();
        Self { socket, client: Client::new(Config::default(), super::world::number()) }
    }

    /// Posts an event of device `id`, and does not wait.
    pub(crate) async fn event(&mut self, id: &str, payload: &[u8], confirmable: bool) {
        let path = ["devices", id, "messages", "events"];
        let method = Method::Post;
        let call = Call { confirmable, method, path: &path, query: &[], content_format: None, payload };
        self.client.call(Instant::now(), &call).unwrap();
        self.transmit().await;
    }

    async fn transmit(&mut self) {
        while let Some(datagram) = self.client.poll_transmit() {
            self.socket.send(&datagram).await.unwrap();
        }
    }

    /// The next datagram.
    pub(crate) async fn hear(&mut self) -> Heard {
        let mut buffer = [0; 2048];
        let bytes = self.socket.recv(&mut buffer).await.unwrap();
        self.client.handle_datagram(Instant::now(), &buffer[..bytes]);
        self.transmit().await;
        match (buffer[0] >> 4 & 3, buffer[1]) {
            (2, 0) => Heard::EmptyAck,
            (2, _) => Heard::Piggybacked,
            (0, _) => Heard::Separate,
            (1, _) => Heard::Non,
            other => panic!("{other:?}"),
        }
    }

    /// What the datagrams so far conclude.
    pub(crate) fn concluded(&mut self) -> Option<CoapAnswer> {
        match self.client.poll_event()? {
            Conclusion { outcome: Outcome::Response { code, max_age, .. }, .. } => {
                Some(CoapAnswer { code: code.to_string(), has_max_age: max_age.is_some() })
            }
            other => panic!("{other:?}"),
        }
    }

    /// The answer to what was posted.
    pub(crate) async fn answer(&mut self) -> CoapAnswer {
        loop {
            self.hear().await;
            if let Some(answer) = self.concluded() {
                return answer;
            }
        }
    }
}

/// An HTTP device: bytes written, answers read.
pub(crate) struct Http {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), input: Vec::new() }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Posts an event of device `id`, and does not wait.
    pub(crate) async fn event(&mut self, id: &str, payload: &[u8]) {
        let bytes = payload.len();
        let head = format!(
            "POST /devices/{id}/messages/events HTTP/1.1\r\nHost: gateway\r\nContent-Length: {bytes}\r\n\r\n"
        );
        self.write(&[head.as_bytes(), payload].concat()).await;
    }

    /// The next answer; nothing when the gateway has closed the connection before.
    pub(crate) async fn try_answer(&mut self) -> Option<HttpAnswer> {
        loop {
            if let Some(answer) = self.whole() {
                return Some(answer);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap() == 0 {
                assert!(self.input.is_empty(), "half an answer: {:?}", self.input);
                return None;
            }
        }
    }

    pub(crate) async fn answer(&mut self) -> HttpAnswer {
        self.try_answer().await.expect("an answer")
    }

    fn whole(&mut self) -> Option<HttpAnswer> {
        let end = self.input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.input[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        let body = String::from_utf8(self.input.get(end..end + length)?.to_vec()).unwrap();
        self.input.drain(..end + length);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(HttpAnswer { status, head, body })
    }

    /// True if nothing has come yet.
    pub(crate) fn is_silent(&self) -> bool {
        let mut byte = [0];
        self.input.is_empty()
            && self
                .stream
                .try_read(&mut byte)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
