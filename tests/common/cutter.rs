//! What stands between gateway and hub: passes bytes on, until it takes the connections away.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How a connection is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum How {
    /// Reset, and new ones are refused.
    Reset,
    /// Closed as a stream is closed, and new ones as soon as they are there.
    Close,
    /// Nothing goes through any more, and nobody is told; new ones are taken and hear nothing.
    Silence,
}

/// What the connections are to do: `None` is to pass bytes on.
pub(crate) type Line = Option<How>;

/// Passes bytes on between a port of its own and the hub's.
#[derive(Debug)]
pub(crate) struct Cutter {
    /// Keeps the port when nobody listens on it.
    _place: Socket,
    pub(crate) port: u16,
    hub: SocketAddr,
    line: watch::Receiver<Line>,
}

impl Cutter {
    pub(crate) fn new(hub: SocketAddr, line: watch::Receiver<Line>) -> io::Result<Self> {
        let place = socket(0)?;
        let port = place.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok(Self { _place: place, port, hub, line })
    }

    /// Runs until the one who gives orders is gone.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        loop {
            let listener = self.listen()?;
            let how = loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        tokio::task::spawn_local(relay(accepted?.0, self.hub, self.line.clone()));
                    }
                    how = cut(&mut self.line) => break how,
                }
            };
            let mut line = self.line.clone();
            match how {
                None => return Ok(()),
                Some(How::Reset) => {
                    drop(listener);
                    whole(&mut line).await;
                }
                Some(How::Close) => tokio::select! {
                    () = whole(&mut line) => {}
                    error = async { loop { if let Err(error) = listener.accept().await { break error } } } => {
                        return Err(error);
                    }
                },
                Some(How::Silence) => {
                    let mut silent = Vec::new();
                    tokio::select! {
                        () = whole(&mut line) => {}
                        error = async {
                            loop {
                                match listener.accept().await {
                                    Ok((stream, _)) => silent.push(stream),
                                    Err(error) => break error,
                                }
                            }
                        } => return Err(error),
                    }
                    silent.iter().for_each(reset);
                }
            }
        }
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = socket(self.port)?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    }
}

/// A socket that shares its port with others of this kind.
fn socket(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    Ok(socket)
}

/// Waits for the cut, and says how; nothing when there will be none.
async fn cut(line: &mut watch::Receiver<Line>) -> Line {
    line.wait_for(Option::is_some).await.ok().and_then(|line| *line)
}

async fn whole(line: &mut watch::Receiver<Line>) {
    // An error means that the program ends.
    let _ = line.wait_for(Option::is_none).await;
}

async fn relay(mut near: TcpStream, hub: SocketAddr, mut line: watch::Receiver<Line>) {
    let Ok(mut far) = TcpStream::connect(hub).await else { return };
    // Without it the figures are worse, and nothing else.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let how = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        how = cut(&mut line) => how,
    };
    match how {
        Some(How::Close) | None => {
            let _ = (near.shutdown().await, far.shutdown().await);
        }
        Some(How::Reset) => [&near, &far].into_iter().for_each(reset),
        Some(How::Silence) => {
            whole(&mut line).await;
            [&near, &far].into_iter().for_each(reset);
        }
    }
}

/// Lets a socket end with a reset as soon as it is dropped.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
}
