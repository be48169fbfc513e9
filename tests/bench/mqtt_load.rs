//! An MQTT 3.1.1 load for the benchmarks: devices that publish with QoS 1 in a closed loop, or that hold idle connections.
//!
//! Blocking sockets and one thread for each publishing device, so that it stays independent of the code it measures (TLS is
//! rustls on both sides). It is not a conformance test; it ends with an error at the first answer that it does not expect, among them a PUBACK
//! out of the order of the PUBLISHes (MQTT 3.1.1, 4.6).
//!
//! `mqtt_load --port PORT [--connections 50] [--messages 100000] [--size 100] [--window 20] [--prefix load]` prints one
//! JSON line. `mqtt_load --port PORT --hold [--connections 2000] [--warm 0] [--keep-alive 900]` opens the connections,
//! publishes `--warm` messages on each, prints `READY` and the number, and holds them until its standard input ends; each
//! sends a PINGREQ and hears a PINGRESP once in the keep-alive time. `--ca FILE` is TLS, to `localhost`.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a device waits for an answer before the run counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Announced at CONNECT, seconds: longer than any run, so that no PINGREQ is due.
const KEEP_ALIVE: u16 = 900;
const PINGREQ: [u8; 2] = [0xc0, 0];
const PINGRESP: [u8; 2] = [0xd0, 0];
const CONNACK_ACCEPTED: [u8; 4] = [0x20, 0x02, 0x00, 0x00];
const PUBACK: [u8; 2] = [0x40, 0x02];
const PUBACK_BYTES: usize = 4;
const MAX_IDLE_CONNECTIONS: usize = 20_000;

struct Options {
    port: u16,
    connections: usize,
    messages: usize,
    size: usize,
    window: usize,
    prefix: String,
    warm: usize,
    keep_alive: u16,
    tls: Option<Arc<ClientConfig>>,
    hold: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut named = HashMap::new();
        let mut hold = false;
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                Some("hold") => hold = true,
                Some(name) => {
                    let value = arguments.next().ok_or_else(|| format!("--{name} wants a value"))?;
                    named.insert(name.to_owned(), value);
                }
                None => return Err(format!("{argument} is no option").into()),
            }
        }
        let mut number = |name: &str, default: Option<usize>| -> Result<usize> {
            match (named.remove(name), default) {
                (Some(text), _) => Ok(text.parse().map_err(|_| format!("--{name} {text} is no number"))?),
                (None, Some(default)) => Ok(default),
                (None, None) => Err(format!("--{name} is missing").into()),
            }
        };
        let options = Self {
            port: u16::try_from(number("port", None)?)?,
            connections: number("connections", Some(if hold { 2000 } else { 50 }))?
                .clamp(1, MAX_IDLE_CONNECTIONS),
            messages: number("messages", Some(100_000))?,
            size: number("size", Some(100))?,
            window: number("window", Some(20))?.clamp(1, usize::from(u16::MAX)),
            warm: number("warm", Some(0))?,
            keep_alive: u16::try_from(number("keep-alive", Some(KEEP_ALIVE.into()))?)?,
            tls: named.remove("ca").map(|file| trust(&file)).transpose()?,
            prefix: named.remove("prefix").unwrap_or_else(|| "load".to_owned()),
            hold,
        };
        match named.keys().next() {
            Some(name) => Err(format!("--{name} is no option").into()),
            None => Ok(options),
        }
    }
}

/// A client's side of TLS that trusts what a CA's certificate in `file` has signed.
fn trust(file: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file)?)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// TCP, or TLS on it.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// One device: a connected socket and the packet that it sends again and again, with another packet identifier each time.
struct Device {
    socket: Box<dyn Stream>,
    packet: Vec<u8>,
    identifier_at: usize,
    sent: usize,
    acknowledged: usize,
    /// What was read of the next PUBACK.
    partial: Vec<u8>,
}

impl Device {
    fn connect(options: &Options, number: usize) -> Result<Self> {
        let id = format!("{}{number}", options.prefix);
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, options.port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut socket: Box<dyn Stream> = match &options.tls {
            None => Box::new(socket),
            Some(config) => {
                let client = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
                Box::new(StreamOwned::new(client, socket))
            }
        };

        let mut body = string("MQTT")?;
        body.extend([4, 0x02]); // level 4, clean session
        body.extend(options.keep_alive.to_be_bytes());
        body.extend(string(&id)?);
        socket.write_all(&packet(0x10, &body))?;
        let mut answer = [0; 4];
        socket.read_exact(&mut answer)?;
        if answer != CONNACK_ACCEPTED {
            return Err(format!("{id}: CONNECT was answered with {answer:02x?}").into());
        }

        let mut body = string(&format!("devices/{id}/messages/events/"))?;
        let topic_bytes = body.len();
        body.extend([0, 0]);
        body.resize(body.len() + options.size, b'x');
        let packet = packet(0x32, &body); // PUBLISH, QoS 1
        let identifier_at = packet.len() - body.len() + topic_bytes;
        Ok(Self { socket, packet, identifier_at, sent: 0, acknowledged: 0, partial: Vec::new() })
    }

    /// Publishes so many messages with at most `window` of them unacknowledged; all that the window allows goes in one write.
    fn publish(&mut self, messages: usize, window: usize) -> Result<()> {
        let goal = self.acknowledged + messages;
        let mut out = Vec::new();
        let mut input = vec![0; window * PUBACK_BYTES];
        while self.acknowledged < goal {
            out.clear();
            while self.sent < goal && self.sent - self.acknowledged < window {
                let identifier = identifier(self.sent);
                self.sent += 1;
                self.packet[self.identifier_at..self.identifier_at + 2]
                    .copy_from_slice(&identifier.to_be_bytes());
                out.extend_from_slice(&self.packet);
            }
            self.socket.write_all(&out)?;
            let read = self.socket.read(&mut input)?;
            if read == 0 {
                return Err(format!("closed with {} unacknowledged", self.sent - self.acknowledged).into());
            }
            self.take(&input[..read])?;
        }
        Ok(())
    }

    fn take(&mut self, input: &[u8]) -> Result<()> {
        self.partial.extend_from_slice(input);
        let whole = self.partial.len() / PUBACK_BYTES * PUBACK_BYTES;
        for packet in self.partial[..whole].chunks_exact(PUBACK_BYTES) {
            let expected = identifier(self.acknowledged);
            if packet[..2] != PUBACK || packet[2..] != expected.to_be_bytes() {
                return Err(format!("a PUBACK for {expected} was due, not {packet:02x?}").into());
            }
            self.acknowledged += 1;
        }
        self.partial.drain(..whole);
        Ok(())
    }

    fn ping(&mut self) -> Result<()> {
        self.socket.write_all(&PINGREQ)?;
        let mut answer = [0; 2];
        self.socket.read_exact(&mut answer)?;
        if answer != PINGRESP {
            return Err(format!("PINGREQ was answered with {answer:02x?}").into());
        }
        Ok(())
    }

    fn disconnect(mut self) -> Result<()> {
        self.socket.write_all(&[0xe0, 0])?;
        Ok(self.socket.flush()?)
    }
}

/// The packet identifier of the n-th message: never 0.
fn identifier(message: usize) -> u16 {
    (message % usize::from(u16::MAX)) as u16 + 1
}

fn string(text: &str) -> Result<Vec<u8>> {
    let mut out = u16::try_from(text.len())?.to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    Ok(out)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn load(options: Options) -> Result<String> {
    let mut devices = Vec::new();
    for number in 0..options.connections {
        devices.push(Device::connect(&options, number)?);
    }
    let start = Arc::new(Barrier::new(options.connections + 1));
    let share = options.messages.div_ceil(options.connections);
    let threads: Vec<_> = devices
        .into_iter()
        .map(|mut device| {
            let start = Arc::clone(&start);
            let window = options.window;
            thread::spawn(move || -> Result<()> {
                start.wait();
                device.publish(share, window)?;
                device.disconnect()
            })
        })
        .collect();
    start.wait();
    let begun = Instant::now();
    for thread in threads {
        thread.join().map_err(|_| "a device's thread panicked")??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let messages = share * options.connections;
    Ok(format!(
        "{{\"connections\":{},\"window\":{},\"size\":{},\"messages\":{messages},\"seconds\":{seconds:.4},\"rate\":{:.0}}}",
        options.connections,
        options.window,
        options.size,
        messages as f64 / seconds,
    ))
}

fn hold(options: &Options) -> Result<()> {
    let mut devices = Vec::new();
    for number in 0..options.connections {
        let mut device = Device::connect(options, number)?;
        device.publish(options.warm, options.window)?;
        devices.push(device);
    }
    say(&format!("READY {}", devices.len()))?;
    let (ending, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        // Whatever it is, it is the end of the input.
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        drop(ending);
    });
    // In turn, and all of them once in the time.
    let pace = Duration::from_secs(options.keep_alive.into()) / u32::try_from(devices.len())?;
    let begun = Instant::now();
    let mut pings = 0;
    loop {
        let due = begun + pace * (pings + 1);
        match ended.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => devices[pings as usize % options.connections].ping()?,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
        pings += 1;
    }
    for device in devices {
        device.disconnect()?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn run() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    if options.hold { hold(&options) } else { say(&load(options)?) }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if standard error is closed.
            let _ = writeln!(io::stderr().lock(), "mqtt_load: {error}");
            ExitCode::FAILURE
        }
    }
}
