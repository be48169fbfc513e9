//! Connection strings: a host, a key and who signs with it, in one line of text.

use std::fmt;

use thiserror::Error;

use super::{SharedKey, Signer};

/// A connection string, read. It holds a secret; its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString {
    /// The hub's host name, without a port.
    pub host: String,
    /// The port, where `HostName` carries one.
    pub port: Option<u16>,
    /// The host to dial instead of the hub's (`GatewayHostName`), as written.
    pub gateway_host: Option<String>,
    /// The device that it is for; `None` in a service's.
    pub device: Option<String>,
    /// The policy whose key it holds; `None` in a device's.
    pub key_name: Option<String>,
    /// The key.
    pub key: SharedKey,
    /// The Event Hub's name (`EntityPath`), in the `Endpoint=` form only.
    pub entity_path: Option<String>,
}

/// What is wrong with a connection string. None of these repeats a value of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectionStringError {
    /// A part is not `Key=Value`.
    #[error(
        "a connection string is made of Key=Value parts joined by semicolons; part {0} has no equals sign"
    )]
    NoEqualsSign(usize),
    /// A key that means nothing here.
    #[error(
        "a connection string has no part {0:?}; it has HostName (or Endpoint), DeviceId, SharedAccessKeyName, \
         SharedAccessKey, GatewayHostName, EntityPath"
    )]
    Unknown(String),
    /// A key that IoT Hub knows and this program does not.
    #[error("{0} in a connection string is not supported: use a device's or a policy's SharedAccessKey")]
    Unsupported(&'static str),
    /// A key that stands there twice.
    #[error("{0} stands twice in the connection string")]
    Twice(&'static str),
    /// A key that must stand there.
    #[error("the connection string has no {0}")]
    Missing(&'static str),
    /// A value that cannot be read.
    #[error("{0} in the connection string is {1}")]
    Invalid(&'static str, &'static str),
}

const PARTS: [&str; 9] = [
    "HostName",
    "Endpoint",
    "GatewayHostName",
    "DeviceId",
    "SharedAccessKeyName",
    "SharedAccessKey",
    "EntityPath",
    "ModuleId",
    "x509",
];

impl ConnectionString {
    /// Reads a device's, a service's or an Event Hub's connection string.
    ///
    /// # Errors
    /// [`ConnectionStringError`], naming the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        let mut values: [Option<&str>; PARTS.len()] = [None; PARTS.len()];
        for (index, part) in text.trim().split(';').enumerate() {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            let (name, value) = part.split_once('=').ok_or(ConnectionStringError::NoEqualsSign(index + 1))?;
            let slot = PARTS
                .iter()
                .position(|known| known.eq_ignore_ascii_case(name.trim()))
                .ok_or_else(|| ConnectionStringError::Unknown(name.trim().chars().take(40).collect()))?;
            if values[slot].replace(value.trim()).is_some() {
                return Err(ConnectionStringError::Twice(PARTS[slot]));
            }
        }
        let [host, endpoint, gateway_host, device, key_name, key, entity_path, module, certificate] =
            values.map(|value| value.filter(|value| !value.is_empty()));
        if module.is_some() {
            return Err(ConnectionStringError::Unsupported("ModuleId"));
        }
        if certificate.is_some() {
            return Err(ConnectionStringError::Unsupported("x509"));
        }
        let (name, authority) = match (host, endpoint) {
            (Some(host), None) => ("HostName", host),
            (None, Some(endpoint)) => {
                let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
                ("Endpoint", authority.split('/').next().unwrap_or(authority))
            }
            (Some(_), Some(_)) => return Err(ConnectionStringError::Twice("HostName or Endpoint")),
            (None, None) => return Err(ConnectionStringError::Missing("HostName")),
        };
        let (host, port) = split_authority(name, authority)?;
        let key = key.ok_or(ConnectionStringError::Missing("SharedAccessKey"))?;
        Ok(Self {
            host,
            port,
            gateway_host: gateway_host.map(str::to_owned),
            device: device.map(str::to_owned),
            key_name: key_name.map(str::to_owned),
            key: SharedKey::from_base64(key)
                .map_err(|_| ConnectionStringError::Invalid("SharedAccessKey", "not base64"))?,
            entity_path: entity_path.map(str::to_owned),
        })
    }

    /// The resource that this string's key is for: the hub, or the one device on it.
    #[must_use]
    pub fn resource(&self) -> String {
        match &self.device {
            Some(device) => format!("{}/devices/{device}", self.host),
            None => self.host.clone(),
        }
    }

    /// A signer with its key.
    #[must_use]
    pub fn signer(&self) -> Signer {
        Signer::new(self.key_name.clone(), self.key.clone())
    }

    /// The text, with the secret in it: write it only where somebody asked for it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text =
            if self.entity_path.is_some() { String::from("Endpoint=sb://") } else { "HostName=".into() };
        text.push_str(&if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() });
        if let Some(port) = self.port {
            text.push_str(&format!(":{port}"));
        }
        if self.entity_path.is_some() {
            text.push('/');
        }
        let key = self.key.to_base64();
        for (name, value) in [
            ("DeviceId", self.device.as_deref()),
            ("SharedAccessKeyName", self.key_name.as_deref()),
            ("SharedAccessKey", Some(key.as_str())),
            ("GatewayHostName", self.gateway_host.as_deref()),
            ("EntityPath", self.entity_path.as_deref()),
        ] {
            if let Some(value) = value {
                text.push_str(&format!(";{name}={value}"));
            }
        }
        text
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("gateway_host", &self.gateway_host)
            .field("device", &self.device)
            .field("key_name", &self.key_name)
            .field("key", &self.key)
            .field("entity_path", &self.entity_path)
            .finish()
    }
}

/// `host`, `host:port` or `[address]:port`.
fn split_authority(
    part: &'static str,
    authority: &str,
) -> Result<(String, Option<u16>), ConnectionStringError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed
                .split_once(']')
                .ok_or(ConnectionStringError::Invalid(part, "an address without its closing bracket"))?;
            (host, rest.strip_prefix(':'))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(ConnectionStringError::Missing(part));
    }
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0).ok_or(
            ConnectionStringError::Invalid(part, "a host with a port that is no number from 1 to 65535"),
        )?),
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConnectionStringError as E;

    #[test]
    fn a_device_a_service_and_an_event_hub() {
        let device = ConnectionString::parse(
            "HostName=hub.example;DeviceId=pump-1;SharedAccessKey=c2VjcmV0;GatewayHostName=gw:8883",
        )
        .unwrap();
        assert_eq!(device.resource(), "hub.example/devices/pump-1");
        assert_eq!((device.port, device.gateway_host.as_deref()), (None, Some("gw:8883")));
        assert_eq!(device.key_name, None);

        // A base64 key ends in equals signs; only the first one of a part divides.
        let service = ConnectionString::parse(
            " HostName=localhost:5671;SharedAccessKeyName=iothubowner;sharedaccesskey=c2VjcmV0cw==; ",
        )
        .unwrap();
        assert_eq!((service.host.as_str(), service.port), ("localhost", Some(5671)));
        assert_eq!(service.resource(), "localhost");
        assert_eq!(service.key.to_base64(), "c2VjcmV0cw==");

        let events = ConnectionString::parse(
            "Endpoint=sb://ns.example/;SharedAccessKeyName=p;SharedAccessKey=c2VjcmV0;EntityPath=eh",
        )
        .unwrap();
        assert_eq!((events.host.as_str(), events.entity_path.as_deref()), ("ns.example", Some("eh")));
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for text in [
            "HostName=hub.example;DeviceId=pump-1;SharedAccessKey=c2VjcmV0;GatewayHostName=gw:8883",
            "HostName=localhost:5671;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0cw==",
            "HostName=[::1]:5671;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0cw==",
            "Endpoint=sb://ns.example/;SharedAccessKeyName=p;SharedAccessKey=c2VjcmV0;EntityPath=eh",
        ] {
            assert_eq!(ConnectionString::parse(text).unwrap().to_text(), text);
        }
    }

    #[test]
    fn errors_name_the_part_and_no_secret() {
        for (text, error) in [
            ("", E::Missing("HostName")),
            ("HostName=h", E::Missing("SharedAccessKey")),
            ("HostName=h;SharedAccessKey", E::NoEqualsSign(2)),
            ("HostName=h;SharedAccessKey=topsecret!", E::Invalid("SharedAccessKey", "not base64")),
            ("HostName=h;HostName=h;SharedAccessKey=c2Vj", E::Twice("HostName")),
            ("HostName=h;Endpoint=sb://h;SharedAccessKey=c2Vj", E::Twice("HostName or Endpoint")),
            ("HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=c2Vj", E::Unsupported("ModuleId")),
            ("HostName=h;DeviceId=d;x509=true", E::Unsupported("x509")),
            ("HostName=h;Hostname2=x;SharedAccessKey=c2Vj", E::Unknown("Hostname2".into())),
            ("HostName=:5671;SharedAccessKey=c2Vj", E::Missing("HostName")),
            (
                "HostName=h:0;SharedAccessKey=c2Vj",
                E::Invalid("HostName", "a host with a port that is no number from 1 to 65535"),
            ),
            (
                "HostName=[::1;SharedAccessKey=c2Vj",
                E::Invalid("HostName", "an address without its closing bracket"),
            ),
        ] {
            let got = ConnectionString::parse(text).unwrap_err();
            assert_eq!(got, error, "{text}");
            assert!(!got.to_string().contains("topsecret"));
        }
    }

    #[test]
    fn debug_and_signing() {
        let string = ConnectionString::parse("HostName=h;DeviceId=d;SharedAccessKey=dG9wc2VjcmV0").unwrap();
        assert!(!format!("{string:?}").contains("dG9wc2VjcmV0"));
        let token = string.signer().token(&string.resource(), 9);
        let token = super::super::Token::parse(&token).unwrap();
        assert_eq!(token.verify(&[&string.key], 8), Ok(()));
    }
}
