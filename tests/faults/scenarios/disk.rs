//! A small disk that fills in the middle and empties again, and an fsync that fails: devices are told to come again, and
//! nothing that was acknowledged is lost.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Result;
use crate::cutter::How;
use crate::disk::Disk;
use crate::figures::Figures;
use crate::ledger::{Kind, Ledger};
use crate::options::Options;
use crate::shim::Shim;
use crate::site::{Plan, Site};

const DEVICES: usize = 60;
const RATE: f64 = 1500.0;
/// Large ones fill what is there sooner; this is what a datagram takes.
const BYTES: usize = 1200;
const MIB: u64 = 64;

/// What the spool may take: more than there is.
const SPOOL_MIB: u64 = 128;

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let rounds = options.amount(4, 20);
    std::fs::create_dir_all(directory)?;
    let disk = Disk::small(directory, MIB)?;
    let state = disk.path.join("state");
    let shim = Shim::compile(directory, state.join("spool"), disk.path.join("control"))?;
    let does_spool = options.kinds.iter().any(|kind| *kind != Kind::Direct);
    let sections =
        if does_spool { format!("[spool]\nmax_bytes = \"{SPOOL_MIB}MiB\"") } else { String::new() };
    let environment = shim.environment(false);
    let plan = Plan { bytes: BYTES, environment, state: Some(state), sections, ..Plan::new(DEVICES, RATE) };
    let mut site = Site::new(options, directory, &plan)?;
    site.ledger.lock().syncs_fail = true;
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    let mut told = Vec::new();
    for round in 0..rounds {
        site.cut(Some(How::Reset));
        sleep(site.rng.millis(500, 1500)).await;
        let taken = disk.fill()?;
        site.note(format_args!("round {round}: the disk is full, {taken} bytes were left"));
        if does_spool {
            let (from, before) = (Instant::now(), site.ledger.lock().refusals_of_spools);
            site.until("devices are told that the disk is full", |it| it.refusals_of_spools > before).await;
            told.push(from.elapsed());
        }
        sleep(site.rng.millis(500, 1500)).await;
        if round % 2 == 1 {
            site.note(format_args!("killed while the disk is full"));
            site.kill().await?;
            site.gateway.start().await?;
        }
        disk.empty()?;
        site.note(format_args!("the disk is empty again"));
        works_again(&site, does_spool).await;
        site.cut(None);
        works_again(&site, true).await;
        site.note(format_args!("syncs fail"));
        shim.fail_syncs(true)?;
        sleep(site.rng.millis(300, 1000)).await;
        if round % 2 == 0 {
            site.kill().await?;
            let loss = crate::crash::crash(&shim, &mut site.rng)?;
            site.note(format_args!("crashed: {loss:?}"));
            shim.fail_syncs(false)?;
            site.gateway.start().await?;
        } else {
            shim.fail_syncs(false)?;
        }
        works_again(&site, true).await;
        // What one round leaves must not fill the disk of the next before anything is done to it.
        site.until("the disk is drained", |it| it.missing() <= DEVICES).await;
    }
    site.finish().await?;
    let mut figures = Figures::default();
    figures.add("disk", format_args!("{:?}", disk.what));
    figures.add("rounds", rounds);
    figures.add("left_over", site.ledger.lock().left_over);
    figures.add_time("until_told_full", told.into_iter().max().unwrap_or(Duration::ZERO));
    // The gateway is gone, and its log is elsewhere.
    drop(disk);
    Ok((site, figures))
}

/// Waits until devices have as many acknowledgements more as there are devices, by nobody's doing but the gateway's.
async fn works_again(site: &Site, should: bool) {
    if should {
        let goal = site.ledger.lock().acknowledgements.len() + DEVICES;
        site.until("the gateway works again by itself", |it: &Ledger| it.acknowledgements.len() >= goal)
            .await;
    }
}
