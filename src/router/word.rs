//! Whose word is enough, where nobody proves to the gateway who he is: a listener believes everybody
//! (`authorise = "any"`), or the hub judges tokens (`authorise = "token"`).
//!
//! A device that is registered with a proof is not spoken for by whoever names its address: the connection must have
//! shown that proof. One that is disabled is spoken for by nobody, whatever the hub would say. Devices that are not
//! registered are none of the registry's business.

use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_mappings::DeviceId;

use crate::devices::Pass;

use super::access::{canonical, decoded};
use super::policy::Authorise;
use super::proving::Registrar;

/// What the word of somebody is worth who says that he is a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nobody has asked for more.
    Enough,
    /// The device is registered with a proof.
    NeedsProof,
    /// The device is registered, and is to be let in nowhere.
    Disabled,
}

/// The device whose address the path names. Where anybody's word is not enough the path must have one reading: whose
/// it is decides.
///
/// # Errors
/// What the device is told of a path that could be read in two ways.
pub(super) fn claimed(registrar: &dyn Registrar, path: &str) -> Result<Option<DeviceId>, AmqpError> {
    match canonical(path) {
        Ok(canonical) => Ok(canonical.path.device()),
        Err(_) if !registrar.doubts_anybody() || !is_below_devices(path) => Ok(None),
        Err(fault) => Err(AmqpError::new(&Condition::NotFound, Some(&fault.to_string()))),
    }
}

/// Whether a connection that has shown `proven` may speak for this device.
///
/// # Errors
/// What it is told.
pub(super) fn believe(
    registrar: &dyn Registrar,
    authorise: Authorise,
    proven: Option<&Pass>,
    device: &DeviceId,
) -> Result<(), AmqpError> {
    let refuse = |why| Err(AmqpError::new(&Condition::UnauthorizedAccess, Some(why)));
    match registrar.word_of(device) {
        Word::Enough => Ok(()),
        Word::Disabled => refuse("the device is disabled"),
        Word::NeedsProof if authorise != Authorise::Any => Ok(()),
        Word::NeedsProof if proven.is_some_and(|pass| pass.device == *device) => Ok(()),
        Word::NeedsProof => {
            refuse("the device is registered with a proof, and this connection has not shown it")
        }
    }
}

/// Whether some hub might take the path for a device's.
fn is_below_devices(path: &str) -> bool {
    decoded(path).trim_start_matches(['/', '\\', '.']).to_ascii_lowercase().starts_with("devices")
}
