//! For the adapters' tests: a worker on sockets of its own, whose hub does not listen.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io, thread};

use fieldgate_mappings::AZURE_IOT_HUB;
use fieldgate_mappings::rules::RuleSet;

use crate::config::Config;
use crate::console::Health;
use crate::devices::{Gate, GateSettings, Known, LimitSettings, Registry};
use crate::listener;
use crate::shutdown::{self, Trigger};
use crate::state::{StateDir, tests::Scratch};
use crate::upstream::{Hub, MappedHubs};
use crate::worker::{self, Setup};

use super::Directory;

const LIMITS: LimitSettings =
    LimitSettings { per_device: 5, per_address: 50, longest: Duration::from_secs(60) };

/// The rules that are used when no file is named.
pub(super) fn rules() -> Arc<RuleSet> {
    Arc::new(RuleSet::load(&[AZURE_IOT_HUB]).unwrap())
}

/// A gate to a registry without devices.
pub(super) fn gate() -> Arc<Gate> {
    Gate::new(Registry::empty(), GateSettings { hosts: Vec::new(), limits: LIMITS })
}

/// A gate to these devices, whose hub is `hub.example`.
pub(super) fn gate_to(devices: &str) -> Arc<Gate> {
    let scratch = Scratch::new();
    let path = scratch.0.join("devices.toml");
    fs::write(&path, devices).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let registry = Registry::load(&path, Known::default()).unwrap_or_else(|error| panic!("{error}"));
    Gate::new(registry, GateSettings { hosts: vec!["hub.example".into()], limits: LIMITS })
}

/// A configuration from the text of its file.
pub(super) fn config(text: &str) -> Config {
    Config::parse("test.toml", text, None).unwrap()
}

/// A worker thread that serves CoAP and HTTP.
pub(super) struct Running {
    pub(super) coap: SocketAddr,
    pub(super) http: SocketAddr,
    trigger: Trigger,
    thread: JoinHandle<io::Result<()>>,
    _scratch: Scratch,
}

impl Running {
    /// Starts the worker with this configuration.
    pub(super) fn start(text: &str) -> Self {
        let scratch = Scratch::new();
        let state = StateDir::locate(Some(&scratch.0.join("state"))).unwrap();
        state.lock().unwrap().hub_identity("localhost").unwrap();
        // Nothing has ever listened on port 1.
        let ca_file = state.ca_file();
        let upstream = format!("[upstream]\nurl = \"amqps://127.0.0.1:1\"\nca_file = {ca_file:?}\n");
        let config = Arc::new(config(&format!("{text}\n{upstream}")));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let coap = listener::udp("coap", any, NonZeroUsize::MIN).unwrap();
        let http = listener::tcp("http", any, NonZeroUsize::MIN).unwrap();
        let (coap_at, http_at) = (coap[0].local_addr().unwrap(), http[0].local_addr().unwrap());
        let setup = Setup {
            index: 0,
            mapped: Some(Arc::new(MappedHubs::new(
                &config,
                Arc::new(Hub::new(&config, None).unwrap()),
                &[],
                Registry::empty(),
            ))),
            hubs: Arc::new([]),
            config,
            rules: rules(),
            directory: Arc::new(Directory::default()),
            gate: gate(),
            health: Arc::new(Health::default()),
            spool: None,
            amqp: Vec::new(),
            mqtt: Vec::new(),
            coap,
            http,
        };
        let (trigger, shutdown) = shutdown::channel();
        let thread = thread::spawn(move || worker::run(setup, &shutdown));
        Self { coap: coap_at, http: http_at, trigger, thread, _scratch: scratch }
    }

    /// Asks the worker to stop, and waits until it has.
    pub(super) fn stop(self) {
        self.trigger.drain();
        self.thread.join().unwrap().unwrap();
    }
}
