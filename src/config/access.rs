//! How a hub is reached: TCP or a WebSocket, directly or through a proxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldgate_websocket::{OASIS_SUBPROTOCOL, SUBPROTOCOL};
use serde::Deserialize;

use super::error::{ConfigError, beside};
use super::profiles::{ClientCertificates, IdentityFiles, SslProfile, TlsVersion};
use super::proxy::{ENVIRONMENT, Proxy};
use super::read_secret_file;
use super::sasl::Sasl;
use super::units::Secret;

/// What carries AMQP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The connection itself.
    #[default]
    Tcp,
    /// A WebSocket.
    WebSocket {
        /// Where the hub takes it.
        path: Arc<str>,
        /// What AMQP is called there.
        subprotocol: &'static str,
    },
}

/// How the hub of `[upstream]` is reached, besides where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whom to trust, and what to show. A hub of this process is trusted by its own CA where no other is named.
    pub tls: Arc<SslProfile>,
    /// What the gateway proves itself with; absent: what the target brings, else nothing.
    pub sasl: Option<Sasl>,
    /// What carries AMQP, where the target is no URL that says so.
    pub transport: Transport,
    /// What AMQP is called in a WebSocket.
    pub subprotocol: &'static str,
    /// Absent: directly.
    pub proxy: Option<Arc<Proxy>>,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            tls: Arc::new(own_profile(None, None)),
            sasl: None,
            transport: Transport::Tcp,
            subprotocol: SUBPROTOCOL,
            proxy: None,
        }
    }
}

/// The profile that the files in `[upstream]` are.
pub(super) fn own_profile(ca_cert_file: Option<PathBuf>, identity: Option<IdentityFiles>) -> SslProfile {
    SslProfile {
        name: "[upstream]".into(),
        ca_cert_file,
        identity,
        protocols: vec![TlsVersion::V1_2, TlsVersion::V1_3],
        client_certificates: ClientCertificates::None,
    }
}

/// `transport`, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Carrier {
    Tcp,
    WebSocket,
}

/// `websocket_protocol`, as it is written: what AMQP is called in a WebSocket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum Subprotocol {
    /// By Azure and its clients.
    #[default]
    #[serde(rename = "AMQPWSB10")]
    Azure,
    /// By brokers.
    #[serde(rename = "amqp")]
    Oasis,
}

impl Subprotocol {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Azure => SUBPROTOCOL,
            Self::Oasis => OASIS_SUBPROTOCOL,
        }
    }
}

/// The keys of a section that say it.
pub(super) struct Written<'a> {
    pub(super) transport: Option<Carrier>,
    pub(super) websocket_path: Option<&'a String>,
    pub(super) websocket_protocol: Option<Subprotocol>,
    pub(super) proxy: Option<&'a Secret>,
    pub(super) proxy_password_file: Option<&'a PathBuf>,
}

impl Written<'_> {
    pub(super) fn transport(
        &self,
        wrong: impl Fn(&str, String) -> ConfigError,
    ) -> Result<Transport, ConfigError> {
        let path = self.websocket_path.map_or(fieldgate_websocket::PATH, String::as_str);
        if !is_path(path) {
            let what = format!("`{}` is no path of a URL", path.escape_debug());
            return Err(
                wrong("websocket_path", what).with_help(format!("as in \"{}\"", fieldgate_websocket::PATH))
            );
        }
        let subprotocol = self.websocket_protocol.unwrap_or_default().name();
        let key = match (self.transport, self.websocket_path, self.websocket_protocol) {
            (Some(Carrier::WebSocket), _, _) => {
                return Ok(Transport::WebSocket { path: path.into(), subprotocol });
            }
            (_, None, None) => return Ok(Transport::Tcp),
            (_, Some(_), _) => "websocket_path",
            (_, None, Some(_)) => "websocket_protocol",
        };
        Err(wrong(key, "this is for WebSocket, and there is none".into())
            .with_help(format!("`transport = \"websocket\"`, or leave `{key}` out")))
    }

    /// The proxy, if there is one; its password may be in a file of its own.
    pub(super) fn proxy(
        &self,
        wrong: impl Fn(&str, String) -> ConfigError,
        base: Option<&Path>,
    ) -> Result<Option<Arc<Proxy>>, ConfigError> {
        let Some(text) = self.proxy else {
            return match self.proxy_password_file {
                None => Ok(None),
                Some(_) => Err(wrong("proxy_password_file", "the password is for no proxy".into())
                    .with_help("`proxy = \"http://user@host:port\"`")),
            };
        };
        let password =
            |file: &PathBuf| read_secret_file(&beside(base, file), |what| wrong("proxy_password_file", what));
        if text.expose() == ENVIRONMENT {
            if self.proxy_password_file.is_some() {
                return Err(wrong("proxy_password_file", "the environment names proxy and password".into())
                    .with_help("leave it out, or write the proxy here"));
            }
            return Proxy::from_environment(|name| std::env::var(name).ok())
                .map(|proxy| proxy.map(Arc::new))
                .map_err(|what| wrong("proxy", format!("in the environment, {what}")));
        }
        let (mut proxy, user) = Proxy::parse(text.expose()).map_err(|what| {
            wrong("proxy", what)
                .with_help("or \"environment\", for HTTPS_PROXY and NO_PROXY; without the key, none")
        })?;
        match (user, self.proxy_password_file) {
            (None, None) => {}
            (Some(user), Some(file)) => proxy.credentials = Some((user, password(file)?)),
            (Some(_), None) => {
                return Err(wrong("proxy", "the user has no password".into())
                    .with_help("`proxy_password_file` names a file that holds it (chmod 600)"));
            }
            (None, Some(_)) => {
                let (what, help) = match &proxy.credentials {
                    Some(_) => {
                        ("the password is given twice", "keep it in the file, and the user in the URL")
                    }
                    None => {
                        ("the password is nobody's", "`proxy = \"http://user@host:port\"` names the user")
                    }
                };
                return Err(wrong("proxy_password_file", what.into()).with_help(help));
            }
        }
        Ok(Some(Arc::new(proxy)))
    }
}

/// Whether a text can stand in a request line (RFC 9112 3.2.1).
pub(super) fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 1_000
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}
