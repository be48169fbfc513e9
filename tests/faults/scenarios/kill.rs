//! kill -9 at random moments under load from devices over three protocols, the hub reachable, away and flapping.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use crate::Result;
use crate::cutter::How;
use crate::figures::Figures;
use crate::options::Options;
use crate::site::{Plan, Site};

const DEVICES: usize = 100;
const RATE: f64 = 1500.0;

/// How long a life may be, in milliseconds; a few end before the gateway listens.
const LIFE: (u64, u64) = (0, 500);

/// How long the line stays as it is while it flaps.
const FLAP: (u64, u64) = (10, 120);

/// How the hub is during one life of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hub {
    There,
    Away(How),
    Flapping,
}

/// Every so many-th life is one in which devices get through, so that all is not the same long outage.
const BREATH: u64 = 8;

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let kills = options.amount(40, 500);
    let mut site = Site::new(options, directory, &Plan::new(DEVICES, RATE))?;
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    let mut slowest_start = Duration::ZERO;
    for kill in 0..kills {
        let (hub, life) = choose(&mut site, kill);
        site.note(format_args!("kill {kill} in {life:?}, the hub is {hub:?}"));
        let end = Instant::now() + life;
        tokio::select! {
            () = sleep_until(end.into()) => {}
            () = weather(&mut site, hub) => {}
        }
        site.kill().await?;
        let starting = Instant::now();
        site.gateway.spawn()?;
        if site.rng.below(10) == 0 {
            // Some do not live to see it.
            sleep_until((starting + site.rng.millis(0, 30)).into()).await;
            site.kill().await?;
            site.gateway.spawn()?;
        }
        site.gateway.started().await?;
        slowest_start = slowest_start.max(starting.elapsed());
    }
    site.finish().await?;
    let mut figures = Figures::default();
    figures.add("kills", kills);
    figures.add_time("slowest_start", slowest_start);
    Ok((site, figures))
}

/// How the hub is in the next life, and how long that life is.
pub(crate) fn choose(site: &mut Site, kill: u64) -> (Hub, Duration) {
    let life = site.rng.millis(LIFE.0, LIFE.1);
    let hub = match site.rng.below(3) {
        _ if kill.is_multiple_of(BREATH) => Hub::There,
        0 => Hub::There,
        1 => Hub::Away(site.any_cut()),
        _ => Hub::Flapping,
    };
    (hub, life)
}

/// Keeps the hub so for ever.
pub(crate) async fn weather(site: &mut Site, hub: Hub) {
    match hub {
        Hub::There => site.cut(None),
        Hub::Away(how) => site.cut(Some(how)),
        Hub::Flapping => loop {
            let line = site.rng.below(2).checked_sub(1).map(|_| site.any_cut());
            site.cut(line);
            let until = Instant::now() + site.rng.millis(FLAP.0, FLAP.1);
            sleep_until(until.into()).await;
        },
    }
    std::future::pending().await
}
