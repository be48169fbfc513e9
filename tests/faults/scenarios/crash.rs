//! kill -9, and the machine crashes with it: what was not synced is lost. Nothing acknowledged may be among it.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::kill::{choose, weather};
use crate::Result;
use crate::crash::{Loss, crash};
use crate::figures::Figures;
use crate::ledger::Kind;
use crate::options::Options;
use crate::sabotage::Sabotage;
use crate::shim::Shim;
use crate::site::{Plan, Site};

const DEVICES: usize = 60;
const RATE: f64 = 1500.0;

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let crashes = options.amount(25, 300);
    let shim = Shim::compile(directory, directory.join("state/spool"), directory.join("control"))?;
    let unsynced = options.sabotage == Some(Sabotage::Unsynced);
    let plan = Plan { environment: shim.environment(unsynced), ..Plan::new(DEVICES, RATE) };
    let mut site = Site::new(options, directory, &plan)?;
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    let (mut sum, mut slowest_start) = (Loss::default(), Duration::ZERO);
    for number in 0..crashes {
        let (hub, life) = choose(&mut site, number);
        site.note(format_args!("crash {number} in {life:?}, the hub is {hub:?}"));
        let end = Instant::now() + life;
        tokio::select! {
            () = sleep_until(end.into()) => {}
            () = weather(&mut site, hub) => {}
        }
        site.kill().await?;
        let loss = crash(&shim, &mut site.rng)?;
        site.note(format_args!("crashed: {loss:?}"));
        sum = Loss { sectors: sum.sectors + loss.sectors, changes: sum.changes + loss.changes };
        let starting = Instant::now();
        site.gateway.start().await?;
        slowest_start = slowest_start.max(starting.elapsed());
    }
    site.finish().await?;
    // Without a spool there is nothing that could be lost.
    if site.kinds.iter().any(|kind| *kind != Kind::Direct) {
        site.demand(sum.sectors > 0, || "no crash lost anything: the run shows nothing".into());
    }
    let mut figures = Figures::default();
    figures.add("crashes", crashes);
    figures.add("lost_sectors", sum.sectors);
    figures.add("lost_changes", sum.changes);
    figures.add_time("slowest_start", slowest_start);
    Ok((site, figures))
}
