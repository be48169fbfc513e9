//! A CA of a test, what it has signed, and devices that trust it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fieldgate::tls::provider;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::world::{Directory, Gateway};

/// A CA with the certificates that it has signed, as files for the gateway.
pub(crate) struct Certificates {
    directory: Directory,
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let directory = Directory::new();
        std::fs::create_dir_all(directory.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let certificates = Self { directory, issuer: Issuer::new(params, key), ca: ca.der().clone() };
        certificates.write("ca.pem", &ca.pem());
        let (server, key) = certificates.sign("gateway", ExtendedKeyUsagePurpose::ServerAuth);
        certificates.write("cert.pem", &server.pem());
        certificates.write("key.pem", &key.serialize_pem());
        certificates
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(self.file(name), text).unwrap();
        std::fs::set_permissions(self.file(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A listener with these certificates; `lines` are of its profile, then of itself.
    pub(crate) fn listener(&self, profile: &str, lines: &str) -> String {
        let (ca, cert, key) = (self.file("ca.pem"), self.file("cert.pem"), self.file("key.pem"));
        format!(
            "[[ssl_profile]]\nname = \"devices\"\nca_cert_file = {ca:?}\ncert_file = {cert:?}\n\
             private_key_file = {key:?}\n{profile}\n\
             [[listener]]\nname = \"tls\"\nhost = \"127.0.0.1\"\nport = 0\nssl_profile = \"devices\"\n{lines}\n"
        )
    }

    /// TLS to the listener for AMQP, with a certificate for a device of this name or without one.
    pub(crate) async fn connect(
        &self,
        gateway: &Gateway,
        version: &'static SupportedProtocolVersion,
        device: Option<&str>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_to(gateway.amqp[1], version, device).await
    }

    /// The same to any listener.
    pub(crate) async fn connect_to(
        &self,
        address: SocketAddr,
        version: &'static SupportedProtocolVersion,
        device: Option<&str>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match device {
            None => config.with_no_client_auth(),
            Some(name) => {
                let (certificate, key) = self.sign(name, ExtendedKeyUsagePurpose::ClientAuth);
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}
