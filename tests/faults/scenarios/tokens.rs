//! Tokens of a short life, and a hub that asks for them: nobody notices that they are made anew all the time. Every
//! second device has a key of its own, with which the gateway signs for it alone; for the others speaks the policy.

use std::path::Path;
use std::time::Duration;

use fieldgate::sas::SharedKey;
use tokio::time::sleep;

use crate::Result;
use crate::figures::Figures;
use crate::options::Options;
use crate::payload;
use crate::sink::Keys;
use crate::site::{Plan, Site, secret};

const DEVICES: usize = 200;
const RATE: f64 = 400.0;
const LIFE: u64 = 20;

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let seconds = options.amount(45, 300);
    let keys = Keys {
        policy: SharedKey::from_bytes(b"the key of the hub in these tests")?,
        devices: SharedKey::from_bytes(b"what the keys of devices are made of")?,
    };
    let text = "HostName=localhost:PORT;SharedAccessKeyName=iothubowner;SharedAccessKey=";
    let mut plan = Plan::new(DEVICES, RATE);
    plan.connection_string = Some(format!("{text}{}", keys.policy.to_base64()));
    plan.upstream = format!("token_ttl = \"{LIFE}s\"");
    std::fs::create_dir_all(directory)?;
    let registry = directory.join("devices.toml");
    secret(&registry, &entries(&keys))?;
    plan.sections = format!("[devices]\nfile = {registry:?}");
    plan.manner.keys = Some(keys);
    let mut site = Site::new(options, directory, &plan)?;
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    sleep(Duration::from_secs(seconds)).await;
    site.finish().await?;
    let (tokens, own) = (site.sink.tokens(), site.sink.device_tokens());
    let (refusals, again) = {
        let ledger = site.ledger.lock();
        (ledger.refusals, ledger.sendings() - ledger.acknowledgements.len())
    };
    site.demand(refusals == 0, || format!("{refusals} messages were refused"));
    site.demand(again == 0, || format!("{again} messages were sent again: their connections were lost"));
    let least = DEVICES as u64 / 2 * (seconds / LIFE);
    site.demand(own >= least, || format!("only {own} tokens of devices were put in {seconds} s"));
    site.demand(tokens - own > seconds / LIFE, || format!("only {} tokens of the policy", tokens - own));
    let mut figures = Figures::default();
    figures.add("tokens", tokens);
    figures.add("tokens_of_devices", own);
    Ok((site, figures))
}

/// The registry: every second device.
fn entries(keys: &Keys) -> String {
    (0..DEVICES as u32)
        .step_by(2)
        .map(|number| {
            let device = payload::name(number);
            let key = keys.of(&device).to_base64();
            format!(
                "[[device]]\nid = {device:?}\nunproven = true\nspeaks_with = \"device-key\"\nhub_key = {key:?}\n"
            )
        })
        .collect()
}
