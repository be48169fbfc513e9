//! Tokens of a short life, and a hub that asks for them: nobody notices that they are made anew all the time.

use std::path::Path;
use std::time::Duration;

use fieldgate::sas::SharedKey;
use tokio::time::sleep;

use crate::Result;
use crate::figures::Figures;
use crate::options::Options;
use crate::site::{Plan, Site};

const DEVICES: usize = 200;
const RATE: f64 = 400.0;
const LIFE: u64 = 20;

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let seconds = options.amount(45, 300);
    let key = SharedKey::from_bytes(b"the key of the hub in these tests")?;
    let text = "HostName=localhost:PORT;SharedAccessKeyName=iothubowner;SharedAccessKey=";
    let mut plan = Plan::new(DEVICES, RATE);
    plan.connection_string = Some(format!("{text}{}", key.to_base64()));
    plan.upstream = format!("token_ttl = \"{LIFE}s\"");
    plan.manner.key = Some(key);
    let mut site = Site::new(options, directory, &plan)?;
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    sleep(Duration::from_secs(seconds)).await;
    site.finish().await?;
    let tokens = site.sink.tokens();
    let (refusals, again) = {
        let ledger = site.ledger.lock();
        (ledger.refusals, ledger.sendings() - ledger.acknowledgements.len())
    };
    site.demand(refusals == 0, || format!("{refusals} messages were refused"));
    site.demand(again == 0, || format!("{again} messages were sent again: their connections were lost"));
    site.demand(tokens > seconds / LIFE, || format!("only {tokens} tokens were put in {seconds} s"));
    let mut figures = Figures::default();
    figures.add("tokens", tokens);
    Ok((site, figures))
}
