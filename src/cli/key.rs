//! `fieldgate hub token` and `hub connection-string`: what a client needs to prove who it is.
//!
//! Both are made from the state directory alone; the hub need not run.

use std::time::Duration;

use fieldgate_mappings::DeviceId;

use super::CliError;
use crate::hub::device_key;
use crate::output::{say, unix_seconds};
use crate::sas::ConnectionString;
use crate::state::StateDir;

/// Prints a token for one device, signed with the hub's policy key.
pub(super) fn token(state: &StateDir, device: &DeviceId, ttl: Duration) -> Result<(), CliError> {
    let service = service(state)?;
    let resource = format!("{}/devices/{device}", service.resource());
    Ok(say(&service.signer().token(&resource, unix_seconds().saturating_add(ttl.as_secs())))?)
}

/// Prints the hub's own connection string, or a device's with the device's own key.
pub(super) fn connection_string(state: &StateDir, device: Option<&DeviceId>) -> Result<(), CliError> {
    let service = service(state)?;
    let text = match device {
        None => service.to_text(),
        Some(device) => {
            let key = device_key(&service.key, device);
            ConnectionString { device: Some(device.to_string()), key_name: None, key, ..service }.to_text()
        }
    };
    Ok(say(&text)?)
}

fn service(state: &StateDir) -> Result<ConnectionString, CliError> {
    Ok(ConnectionString::parse(state.service_connection_string()?.expose())?)
}
