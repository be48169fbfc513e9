//! What every hub of the tests does alike: takes connections over TLS, and gives each its machine and its party.

use std::sync::Arc;
use std::time::Instant;

use fieldgate_amqp::connection::{Connection, ConnectionConfig, LinkId};
use fieldgate_amqp::endpoint::{CreditPolicy, Receiver, ReceiverConfig};
use fieldgate_amqp::performative::{Attach, AttachOut, Role, SourceOut, TargetOut};
use fieldgate_amqp::sasl::Mechanism;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::party::{Party, drive};

/// Serves every connection that comes, for ever; each is what `party` makes.
pub(crate) async fn serve<P: Party + 'static>(
    listener: TcpListener,
    tls: TlsAcceptor,
    party: impl Fn() -> P,
) {
    // A listener that fails once is asked again; without connections the run shows it.
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, mut party) = (tls.clone(), party());
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(stream) = tls.accept(stream).await {
                drive(stream, machine(), &mut party).await;
            }
        });
    }
}

fn machine() -> Connection {
    let config = ConnectionConfig {
        container_id: "hub".into(),
        channel_max: u16::MAX,
        handle_max: u32::MAX,
        max_links: 100_000,
        ..ConnectionConfig::default()
    };
    Connection::server(Arc::new(config), &[Mechanism::Anonymous, Mechanism::Mssbcbs], true, Instant::now())
}

/// Takes a link as it is asked for. Where the peer sends, gives the receiving end, with so much credit at a time.
pub(crate) fn admit(
    machine: &mut Connection,
    link: LinkId,
    attach: &Attach,
    credit: u32,
) -> Option<Receiver> {
    let source = attach.source().unwrap_or_else(|| SourceOut::default().build());
    let target = attach.target().unwrap_or_else(|| TargetOut::default().build());
    let answer = match attach.role() {
        Role::Sender => AttachOut::receiver(attach.name(), &source, &target),
        Role::Receiver => AttachOut::sender(attach.name(), &source, &target),
    };
    let (snd_settle_mode, rcv_settle_mode) = (attach.snd_settle_mode(), attach.rcv_settle_mode());
    machine.answer_attach(link, &AttachOut { snd_settle_mode, rcv_settle_mode, ..answer }.build());
    if attach.role() == Role::Receiver {
        return None;
    }
    let config = ReceiverConfig {
        credit: CreditPolicy::Prefetch(credit),
        rcv_settle_mode,
        ..ReceiverConfig::default()
    };
    let mut receiver = Receiver::new(link, config);
    receiver.on_attached(machine);
    Some(receiver)
}
