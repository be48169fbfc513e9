//! What the gateway's own connections to a hub prove themselves with.

use std::path::{Path, PathBuf};

use fieldgate_amqp::sasl::Mechanism;

use super::error::{ConfigError, beside};
use super::mechanisms::Way;
use super::read_secret_file;
use super::units::Secret;

/// What a connection proves itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sasl {
    /// No SASL at all: AMQP begins at once.
    Bare,
    /// Nothing.
    Anonymous,
    /// Claims on `$cbs` follow.
    Mssbcbs,
    /// The certificate that TLS shows.
    External,
    /// User and password.
    Plain {
        /// The authentication identity.
        user: String,
        /// Its password.
        password: Secret,
    },
}

/// The keys of a section that say it.
pub(super) struct Written<'a> {
    pub(super) mechanisms: Option<&'a [Way]>,
    pub(super) user: Option<&'a String>,
    pub(super) password: Option<&'a Secret>,
    pub(super) password_file: Option<&'a PathBuf>,
}

impl Written<'_> {
    /// The first of the mechanisms that there is what it takes for; with no word about it, PLAIN for a user, else
    /// nothing. `certified`: TLS has a certificate to show.
    pub(super) fn resolve(
        &self,
        wrong: impl Fn(&str, String) -> ConfigError,
        certified: bool,
        base: Option<&Path>,
    ) -> Result<Option<Sasl>, ConfigError> {
        let plain = self.plain(&wrong, base)?;
        let Some(list) = self.mechanisms else { return Ok(plain) };
        let usable = list.iter().find_map(|way| match way {
            Way::Bare => Some(Sasl::Bare),
            Way::Sasl(Mechanism::Anonymous) => Some(Sasl::Anonymous),
            Way::Sasl(Mechanism::Mssbcbs) => Some(Sasl::Mssbcbs),
            Way::Sasl(Mechanism::External) => certified.then_some(Sasl::External),
            Way::Sasl(Mechanism::Plain) => plain.clone(),
        });
        usable.map(Some).ok_or_else(|| {
            wrong("sasl_mechanisms", "there is no credential for any of these".into()).with_help(
                "PLAIN takes `sasl_username` and `sasl_password_file`; EXTERNAL TLS with a `cert_file`",
            )
        })
    }

    fn plain(
        &self,
        wrong: &impl Fn(&str, String) -> ConfigError,
        base: Option<&Path>,
    ) -> Result<Option<Sasl>, ConfigError> {
        let password = match (self.password, self.password_file) {
            (None, None) => None,
            (Some(text), None) => Some(text.clone()),
            (None, Some(file)) => {
                Some(read_secret_file(&beside(base, file), |what| wrong("sasl_password_file", what))?)
            }
            (Some(_), Some(_)) => {
                return Err(wrong("sasl_password", "the password is given twice".into())
                    .with_help("keep one of `sasl_password_file` and `sasl_password`"));
            }
        };
        match (self.user, password) {
            (Some(user), Some(password)) => Ok(Some(Sasl::Plain { user: user.clone(), password })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(wrong("sasl_username", "the user has no password".into())
                .with_help("`sasl_password_file` names a file that holds it (chmod 600)")),
            (None, Some(_)) => {
                let key = if self.password_file.is_some() { "sasl_password_file" } else { "sasl_password" };
                Err(wrong(key, "the password is nobody's".into()).with_help("`sasl_username` names the user"))
            }
        }
    }
}
