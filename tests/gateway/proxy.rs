//! A small HTTP proxy that makes tunnels, for those who say who they are, as a test tells it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// `gate:open sesame`, as basic authentication has it.
const BASIC: &str = "Proxy-Authorization: Basic Z2F0ZTpvcGVuIHNlc2FtZQ==";

/// A proxy, as long as it lives.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Tunnel>>>,
    /// What is answered in place of a tunnel.
    answer: Arc<Mutex<Option<&'static str>>>,
    /// Tunnels of an older generation are cut.
    generation: watch::Sender<u64>,
}

/// A request that was answered with a tunnel or with something else.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) request: String,
    /// What the gateway said first in it.
    pub(crate) first: Vec<u8>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (generation, cut) = watch::channel(0);
        let proxy = Self { address, seen: Arc::default(), answer: Arc::default(), generation };
        let (seen, answer) = (Arc::clone(&proxy.seen), Arc::clone(&proxy.answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answer), cut.clone()));
            }
        });
        proxy
    }

    /// The setting for it, with user and password.
    pub(crate) fn setting(&self) -> String {
        format!("proxy = \"http://gate:open%20sesame@{}\"\n", self.address)
    }

    /// What is answered from now on in place of tunnels.
    pub(crate) fn answer(&self, with: Option<&'static str>) {
        *self.answer.lock().unwrap() = with;
    }

    /// Ends all tunnels.
    pub(crate) fn cut(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn seen(&self) -> Vec<Tunnel> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<Tunnel>>>,
    answer: Arc<Mutex<Option<&'static str>>>,
    mut cut: watch::Receiver<u64>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    let at = seen.lock().unwrap().len();
    seen.lock().unwrap().push(Tunnel { request: request.clone(), first: Vec::new() });
    let answer = *answer.lock().unwrap();
    let answer = answer.or_else(|| {
        (!request.contains(BASIC)).then_some(
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n",
        )
    });
    if let Some(answer) = answer {
        // A gateway that has gone need not hear it.
        let _ = stream.write_all(answer.as_bytes()).await;
        return;
    }
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
    let Ok(mut hub) = TcpStream::connect(target).await else {
        let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
        return;
    };
    stream.write_all(b"HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n").await.unwrap();
    let mut first = vec![0; 4];
    if stream.read_exact(&mut first).await.is_err() || hub.write_all(&first).await.is_err() {
        return;
    }
    seen.lock().unwrap()[at].first = first;
    cut.mark_unchanged();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut stream, &mut hub) => {}
        _ = cut.changed() => {}
    }
}
