//! From the first byte to both opens, and the close (2.2, 2.4, 5.3).

use super::event::{CloseReason, Event};
use super::{Connection, Phase, Step, encode, write};
use crate::connection::ClientSecurity;
use crate::error::{AmqpError, Violation};
use crate::frame::{Frame, FrameKind, MIN_MAX_FRAME_BYTES, ProtocolHeader, put_frame};
use crate::performative::{Composite, Open, Patch, descriptor};
use crate::sasl::{self, Mechanism, SaslCode};

/// What only matters until both sides have opened.
#[derive(Debug)]
pub(crate) enum Handshake {
    Server {
        mechanisms: Box<[Mechanism]>,
        allow_bare: bool,
    },
    /// `open` is `None` where the application gives it later; `asked` is whether it has been asked for it.
    Client {
        security: ClientSecurity,
        open: Option<Open>,
        asked: bool,
    },
}

impl Handshake {
    pub(crate) fn server(mechanisms: &[Mechanism], allow_bare: bool) -> Self {
        Self::Server { mechanisms: mechanisms.into(), allow_bare }
    }
}

impl Connection {
    pub(crate) fn start_client(&mut self, security: ClientSecurity, open: Option<Open>) {
        let bare = security == ClientSecurity::Bare;
        self.handshake = Some(Box::new(Handshake::Client { security, open, asked: false }));
        if bare {
            self.send_header_and_open();
        } else {
            self.output.now().extend_from_slice(&ProtocolHeader::Sasl.bytes());
            self.phase = Phase::SaslHeader;
        }
    }

    /// Client: the AMQP header, and our open behind it without waiting for the server's header, if we have it.
    fn send_header_and_open(&mut self) {
        self.output.now().extend_from_slice(&ProtocolHeader::Amqp.bytes());
        self.phase = Phase::AmqpHeader;
        if matches!(self.handshake.as_deref(), Some(Handshake::Client { open: Some(_), .. })) {
            self.write_own_open();
        } else {
            self.clock.no_deadline();
        }
    }

    /// Client: whether the application is to be asked for its open now.
    pub(crate) fn ask_for_open(&mut self) -> bool {
        match self.handshake.as_deref_mut() {
            Some(Handshake::Client { open: None, asked, .. }) if self.phase == Phase::AmqpHeader => {
                !std::mem::replace(asked, true)
            }
            _ => false,
        }
    }

    pub(crate) fn on_header(&mut self, header: [u8; 8]) -> Step {
        let (offers_sasl, allow_bare) = match self.handshake.as_deref() {
            Some(Handshake::Server { mechanisms, allow_bare }) => (!mechanisms.is_empty(), *allow_bare),
            _ => (false, false),
        };
        let spoken = ProtocolHeader::parse(header).ok();
        let is_sasl = spoken == Some(ProtocolHeader::Sasl);
        let is_amqp = spoken == Some(ProtocolHeader::Amqp);
        match self.phase {
            Phase::Header if is_sasl && offers_sasl => {
                self.output.now().extend_from_slice(&ProtocolHeader::Sasl.bytes());
                if let Some(Handshake::Server { mechanisms, .. }) = self.handshake.as_deref() {
                    sasl::put_mechanisms(self.output.now(), mechanisms);
                }
                self.phase = Phase::Init;
            }
            Phase::Header if is_amqp && allow_bare => {
                self.output.now().extend_from_slice(&ProtocolHeader::Amqp.bytes());
                self.phase = Phase::Open;
            }
            Phase::SaslHeader if is_sasl => self.phase = Phase::Mechanisms,
            Phase::AmqpHeader if is_amqp => {
                if !self.is_client() {
                    self.output.now().extend_from_slice(&ProtocolHeader::Amqp.bytes());
                }
                self.phase = Phase::Open;
            }
            phase => {
                // 2.2: say which protocol would have been right, then close.
                if !self.is_client() {
                    let right = if phase == Phase::Header && offers_sasl {
                        ProtocolHeader::Sasl
                    } else {
                        ProtocolHeader::Amqp
                    };
                    self.output.now().extend_from_slice(&right.bytes());
                }
                self.finish(CloseReason::Header(header));
            }
        }
        Step::Again
    }

    fn is_client(&self) -> bool {
        matches!(self.handshake.as_deref(), Some(Handshake::Client { .. }))
    }

    pub(crate) fn on_sasl_frame(&mut self, frame: Frame) -> Result<Step, Violation> {
        if frame.kind != FrameKind::Sasl {
            return Err(Violation::FrameType(FrameKind::Amqp as u8));
        }
        let (body, _) = Composite::parse(frame.body, &self.config.limits)?;
        match (self.phase, body.code()) {
            (Phase::Init, descriptor::SASL_INIT) => Ok(self.on_sasl_init(&body)),
            (Phase::Mechanisms, descriptor::SASL_MECHANISMS) => Ok(self.on_sasl_mechanisms(&body)),
            (Phase::Outcome, descriptor::SASL_OUTCOME) => {
                match body.u8(0).and_then(SaslCode::from_wire) {
                    Some(SaslCode::Ok) => self.send_header_and_open(),
                    code => self.finish(CloseReason::SaslFailed(code)),
                }
                Ok(Step::Again)
            }
            // None of our mechanisms has a second step.
            (Phase::Outcome, descriptor::SASL_CHALLENGE) => {
                self.finish(CloseReason::SaslFailed(None));
                Ok(Step::Again)
            }
            _ => Err(Violation::Unexpected("a frame of the SASL exchange")),
        }
    }

    fn on_sasl_init(&mut self, body: &Composite) -> Step {
        let offered: &[Mechanism] = match self.handshake.as_deref() {
            Some(Handshake::Server { mechanisms, .. }) => mechanisms,
            _ => &[],
        };
        let init =
            body.symbol(0).and_then(Mechanism::from_name).filter(|mechanism| offered.contains(mechanism));
        let plain = body.binary(1).and_then(sasl::parse_plain);
        match init {
            Some(mechanism) if mechanism != Mechanism::Plain || plain.is_some() => {
                self.phase = Phase::Judging;
                self.clock.no_deadline();
                let plain = plain.filter(|_| mechanism == Mechanism::Plain);
                Step::Event(Event::SaslInit { mechanism, plain, hostname: body.str(2).map(str::to_owned) })
            }
            _ => {
                sasl::put_outcome(self.output.now(), SaslCode::Auth);
                self.finish(CloseReason::SaslFailed(Some(SaslCode::Auth)));
                Step::Again
            }
        }
    }

    fn on_sasl_mechanisms(&mut self, body: &Composite) -> Step {
        let hostname = self.config.hostname.as_deref();
        if let Some(Handshake::Client { security, .. }) = self.handshake.as_deref()
            && let Some(mechanism) = Mechanism::of(security)
            && body.symbols(0).any(|offered| offered == mechanism.name())
        {
            sasl::put_init(self.output.now(), security, hostname);
            self.phase = Phase::Outcome;
        } else {
            self.finish(CloseReason::SaslFailed(None));
        }
        Step::Again
    }

    /// Server: answers [`Event::SaslInit`]. Anything but `Ok` ends the connection. Without such an event before it,
    /// it has no effect.
    pub fn sasl_outcome(&mut self, code: SaslCode) {
        if self.phase != Phase::Judging {
            return;
        }
        sasl::put_outcome(self.output.now(), code);
        if code == SaslCode::Ok {
            self.phase = Phase::AmqpHeader;
            self.clock.new_deadline();
        } else {
            self.finish(CloseReason::SaslFailed(Some(code)));
        }
    }

    pub(crate) fn on_open(&mut self, open: Open) -> Result<Step, Violation> {
        if open.max_frame_size() < MIN_MAX_FRAME_BYTES {
            return Err(Violation::InvalidField("max-frame-size is less than 512"));
        }
        self.peer_max_frame_bytes = open.max_frame_size();
        self.peer_channel_max = open.channel_max();
        self.remote_open = Some(open.encoded().into());
        self.clock.beat(open.idle_time_out());
        if self.open_sent {
            self.run();
        } else {
            self.phase = Phase::Answering;
            self.clock.no_deadline();
        }
        Ok(Step::Event(Event::Opened(open)))
    }

    /// Server: answers [`Event::Opened`]. Client: answers [`Event::Authenticated`]. max-frame-size, channel-max and
    /// idle-time-out are set from the configuration. Without such an event before it, it has no effect.
    pub fn open(&mut self, open: Open) {
        match self.phase {
            Phase::Answering => {
                self.write_open(&open);
                self.run();
            }
            Phase::AmqpHeader | Phase::Open if self.is_client() && !self.open_sent => {
                self.write_open(&open);
                self.clock.new_deadline();
            }
            _ => {}
        }
    }

    /// Both have opened.
    fn run(&mut self) {
        self.phase = Phase::Running;
        self.clock.no_deadline();
        self.handshake = None;
        if !self.output.open(self.peer_max_frame_bytes) {
            self.fail(Violation::InvalidField("max-frame-size is too small for our frames"));
        }
    }

    /// Writes our open, if it has not been written.
    pub(crate) fn write_own_open(&mut self) {
        if self.open_sent {
            return;
        }
        let open = match self.handshake.as_deref() {
            Some(Handshake::Client { open: Some(open), .. }) => open.clone(),
            _ => self.config.open(),
        };
        self.write_open(&open);
    }

    fn write_open(&mut self, open: &Open) {
        let patches = [
            (2, Patch::U32(self.config.max_frame_bytes)),
            (3, Patch::U16(self.config.channel_max)),
            (4, self.config.idle_time_out_ms().map_or(Patch::Null, Patch::U32)),
        ];
        put_frame(self.output.now(), FrameKind::Amqp, 0, |out| open.write_patched(out, &patches));
        self.open_sent = true;
    }

    /// Closes the connection. The peer's answer comes as [`Event::Closed`]; before both sides have spoken AMQP there
    /// is none, and the connection is over at once.
    pub fn close(&mut self, error: Option<AmqpError>) {
        match self.phase {
            Phase::Open | Phase::Answering | Phase::Running => {
                self.write_own_open();
                self.output.discard_waiting();
                let error = write::fit_error(error, self.peer_max_frame_bytes);
                encode::put_close(self.output.now(), error.as_ref());
                self.phase = Phase::Closing;
                self.clock.new_deadline();
            }
            Phase::Closing | Phase::Closed => {}
            _ => self.finish(CloseReason::Local),
        }
    }

    /// The peer's close.
    pub(crate) fn on_close(&mut self, error: Option<AmqpError>) {
        if self.phase == Phase::Closing {
            return self.finish(CloseReason::Local);
        }
        self.write_own_open();
        encode::put_close(self.output.now(), None);
        self.finish(CloseReason::Remote(error));
    }
}
