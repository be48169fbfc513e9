//! The state directory: keys, certificates, and the note that tells the hub's tools where it listens.
//!
//! Only its user may read it (0700, files 0600). Whoever runs the hub holds its lock; the tools read without it.

mod certificates;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::config::Secret;
use crate::lock_file::{self, LockError, LockFile};
use crate::tls::Identity;

/// The policy that may do everything, and whose key the state directory holds.
pub const POLICY: &str = "iothubowner";

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const HUB: &str = "hub.pem";
const HUB_KEY: &str = "hub-key.pem";
const POLICY_KEY: &str = "policy-key";
const SERVICE: &str = "service-connection-string";
const DEVICES: &str = "devices.toml";

/// A state directory that cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Nothing says where it is.
    #[error(
        "there is no place for the state: set HOME or XDG_STATE_HOME, or [state] directory, or --state-dir"
    )]
    NoPlace,
    /// Another process uses it.
    #[error("{} is in use by {holder}; stop it, or name another directory with --state-dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// "process 4711", or "another process".
        holder: String,
    },
    /// A file or directory that the system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is there but is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which one.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// No hub has run here yet.
    #[error("no hub has been started with {} yet: start `fieldgate hub` or `fieldgate run`, or name its directory with --state-dir", path.display())]
    NoHub {
        /// The directory.
        path: PathBuf,
    },
    /// Certificates could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// The directory, looked at without its lock.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// The directory, held by this process until this value is dropped.
#[derive(Debug)]
pub struct LockedState {
    directory: StateDir,
    // Closing the file gives the lock back.
    _lock: LockFile,
}

impl Deref for LockedState {
    type Target = StateDir;

    fn deref(&self) -> &StateDir {
        &self.directory
    }
}

impl StateDir {
    /// The directory that was asked for, else the user's own.
    ///
    /// # Errors
    /// [`StateError::NoPlace`] when neither is known.
    pub fn locate(asked: Option<&Path>) -> Result<Self, StateError> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let path = match asked {
            Some(path) => path.into(),
            None => variable("XDG_STATE_HOME")
                .or_else(|| Some(variable("HOME")?.join(".local/state")))
                .ok_or(StateError::NoPlace)?
                .join("fieldgate"),
        };
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names that the embedded hub answers to: loopback's, this host's and the configured one.
    #[must_use]
    pub fn hub_names(hub_name: &str) -> Vec<String> {
        certificates::names(hub_name, host_name().as_deref())
    }

    /// The certificate of the own CA, which clients of the embedded hub trust.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.path.join(CA)
    }

    /// The device registry, if there is one.
    #[must_use]
    pub fn devices_file(&self) -> PathBuf {
        self.path.join(DEVICES)
    }

    /// How to reach the hub that runs, or last ran, with this directory, with its policy key.
    ///
    /// # Errors
    /// [`StateError::NoHub`] when none ever ran.
    pub fn service_connection_string(&self) -> Result<Secret, StateError> {
        let path = self.path.join(SERVICE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Secret::new(text.trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StateError::NoHub { path: self.path.clone() })
            }
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    /// Makes the directory if there is none, and holds it.
    ///
    /// # Errors
    /// [`StateError::InUse`] while another process holds it.
    pub fn lock(&self) -> Result<LockedState, StateError> {
        self.make()?;
        let lock = LockFile::hold(&self.path).map_err(|error| match error {
            LockError::InUse(holder) => StateError::InUse { path: self.path.clone(), holder },
            LockError::Io { path, source } => StateError::Io { path, source },
        })?;
        Ok(LockedState { directory: self.clone(), _lock: lock })
    }

    /// Makes the directory if there is none, for its user only.
    ///
    /// # Errors
    /// When it cannot be made, or is open to others.
    pub(crate) fn make(&self) -> Result<(), StateError> {
        let failed = |source| StateError::Io { path: self.path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        let metadata = fs::metadata(&self.path).map_err(failed)?;
        if metadata.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        // Somebody else's open directory (say, /tmp itself) is not ours to close.
        if fs::read_dir(&self.path).map_err(failed)?.next().is_none()
            || self.path.join(lock_file::NAME).exists()
        {
            return fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)).map_err(failed);
        }
        Err(StateError::Content {
            path: self.path.clone(),
            what: format!(
                "is open to other users (mode {:o}) and holds other files; keys need a directory of their own",
                metadata.mode() & 0o777
            ),
        })
    }
}

impl LockedState {
    /// The hub's certificate with its key, for `localhost`, loopback, this host's name and the hub's; made when there is
    /// none, and made again when it would soon be refused. The CA lives ten years and is made once.
    ///
    /// # Errors
    /// When a file cannot be read, written, or understood.
    pub fn hub_identity(&self, hub_name: &str) -> Result<Identity, StateError> {
        let names = StateDir::hub_names(hub_name);
        let now = SystemTime::now();
        if !self.holds(CA)? || !self.holds(CA_KEY)? {
            let ca = certificates::new_ca(now)?;
            self.write(CA_KEY, &ca.key)?;
            self.write(CA, &ca.certificate)?;
        }
        let ca = self.certificate(CA)?;
        if !self.holds(HUB)?
            || !self.holds(HUB_KEY)?
            || !certificates::is_good(&ca, &self.certificate(HUB)?, &names, now)
        {
            let hub = certificates::new_server(&self.read(CA_KEY)?, &names, now)?;
            self.write(HUB_KEY, &hub.key)?;
            self.write(HUB, &hub.certificate)?;
        }
        let key = PrivateKeyDer::from_pem_slice(self.read(HUB_KEY)?.as_bytes())
            .map_err(|error| self.not_understood(HUB_KEY, &error))?;
        Ok(Identity { chain: vec![self.certificate(HUB)?, ca], key })
    }

    /// The key of the policy [`POLICY`]: 32 random bytes in base64, made once.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn policy_key(&self) -> Result<Secret, StateError> {
        if !self.holds(POLICY_KEY)? {
            let mut key = [0; 32];
            SystemRandom::new().fill(&mut key).map_err(|_| StateError::Io {
                path: self.path.join(POLICY_KEY),
                source: io::Error::other("the system gives no random bytes"),
            })?;
            self.write(POLICY_KEY, &BASE64.encode(key))?;
        }
        let text = self.read(POLICY_KEY)?;
        match BASE64.decode(text.trim()) {
            Ok(key) if key.len() >= 16 => Ok(Secret::new(text.trim())),
            _ => Err(StateError::Content {
                path: self.path.join(POLICY_KEY),
                what: "is not a key (base64, at least 16 bytes); remove it to have one made".into(),
            }),
        }
    }

    /// Notes how to reach the hub, for `hub watch`, `hub send` and `hub token`; call it once the hub listens.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_service_connection_string(&self, port: u16) -> Result<Secret, StateError> {
        let key = self.policy_key()?;
        let text = format!(
            "HostName=localhost:{port};SharedAccessKeyName={POLICY};SharedAccessKey={}",
            key.expose()
        );
        self.write(SERVICE, &text)?;
        Ok(Secret::new(text))
    }

    fn holds(&self, name: &str) -> Result<bool, StateError> {
        let path = self.path.join(name);
        path.try_exists().map_err(|source| StateError::Io { path, source })
    }

    fn read(&self, name: &str) -> Result<String, StateError> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(|source| StateError::Io { path, source })
    }

    fn certificate(&self, name: &str) -> Result<CertificateDer<'static>, StateError> {
        CertificateDer::from_pem_slice(self.read(name)?.as_bytes())
            .map_err(|error| self.not_understood(name, &error))
    }

    fn not_understood(&self, name: &str, error: &rustls::pki_types::pem::Error) -> StateError {
        StateError::Content {
            path: self.path.join(name),
            what: format!("{error}; remove it to have a new one made"),
        }
    }

    /// Replaces a file as a whole: a crash leaves the old one or the new one, never half of one.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| StateError::Io { path: path.clone(), source })
    }
}

/// What this machine calls itself, if it says so.
fn host_name() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory that goes away with the test.
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("fieldgate-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn state(scratch: &Scratch) -> StateDir {
        StateDir::locate(Some(&scratch.0.join("state"))).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn one_process_at_a_time_and_the_error_names_it() {
        let scratch = Scratch::new();
        let directory = state(&scratch);
        let held = directory.lock().unwrap();
        let message = directory.lock().unwrap_err().to_string();
        assert!(message.contains(&format!("in use by process {}", std::process::id())), "{message}");
        drop(held);
        directory.lock().unwrap();
    }

    #[test]
    fn only_the_user_reads_what_is_made_here() {
        let scratch = Scratch::new();
        let state = state(&scratch).lock().unwrap();
        state.hub_identity("hub.example").unwrap();
        state.write_service_connection_string(5671).unwrap();
        assert_eq!(mode(state.path()), 0o700);
        for name in [lock_file::NAME, CA, CA_KEY, HUB, HUB_KEY, POLICY_KEY, SERVICE] {
            assert_eq!(mode(&state.path().join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn keys_and_certificates_stay_until_a_name_changes() {
        let scratch = Scratch::new();
        let state = state(&scratch).lock().unwrap();
        let first = state.hub_identity("hub.example").unwrap();
        assert_eq!(state.hub_identity("hub.example").unwrap().chain, first.chain);
        let renamed = state.hub_identity("other.example").unwrap();
        assert_ne!(renamed.chain[0], first.chain[0]);
        assert_eq!(renamed.chain[1], first.chain[1], "the CA stays");
        assert_eq!(state.policy_key().unwrap(), state.policy_key().unwrap());
        crate::tls::server(renamed).unwrap();
        crate::tls::client(&crate::tls::Roots::File(state.ca_file())).unwrap();
    }

    #[test]
    fn the_tools_learn_where_the_hub_is_without_the_lock() {
        let scratch = Scratch::new();
        let directory = state(&scratch);
        let message = directory.service_connection_string().unwrap_err().to_string();
        assert!(message.contains("fieldgate hub"), "{message}");
        let held = directory.lock().unwrap();
        let written = held.write_service_connection_string(4711).unwrap();
        assert_eq!(directory.service_connection_string().unwrap(), written);
        assert!(
            written
                .expose()
                .starts_with("HostName=localhost:4711;SharedAccessKeyName=iothubowner;SharedAccessKey=")
        );
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let scratch = Scratch::new();
        let state = state(&scratch).lock().unwrap();
        fs::write(state.path().join(POLICY_KEY), "short").unwrap();
        let message = state.policy_key().unwrap_err().to_string();
        assert!(message.contains("policy-key: is not a key"), "{message}");
    }

    #[test]
    fn a_directory_that_others_read_and_use_is_refused() {
        let scratch = Scratch::new();
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(scratch.0.join("letter"), "dear").unwrap();
        let message = StateDir::locate(Some(&scratch.0)).unwrap().lock().unwrap_err().to_string();
        assert!(message.contains("open to other users (mode 755)"), "{message}");
    }
}
