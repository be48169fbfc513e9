//! The hub away for a long time under a steady load, and the time after it: everything arrives, in order, and live
//! messages of other devices do not wait for what is drained.
//!
//! Two devices of three spool. The others send straight to the hub: while it is away they wait, and after it their
//! acknowledgements show what the drain costs them, beside what they took before the outage. The hub has a pace for
//! each connection, so that the drain is long enough to be looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::cutter::How;
use crate::figures::{Figures, Latency};
use crate::ledger::{Kind, Ledger};
use crate::options::Options;
use crate::site::{Plan, Site};

const DEVICES: usize = 150;
/// Messages a second, of devices that spool and of all.
const SPOOLED: f64 = 500.0;
const RATE: f64 = 750.0;

/// What the hub takes of one connection: ten times what devices spool.
const PACE: Duration = Duration::from_micros(200);

/// Before the outage, and after all is drained.
const QUIET: Duration = Duration::from_secs(5);

/// How long live acknowledgements may take while the rest is drained, of a hundred the slowest but one: this, or so many
/// times what they took before.
const LIVE: Duration = Duration::from_millis(250);
const SLOWER: u32 = 5;

/// How much faster than messages come they have to be drained.
const DRAIN: f64 = 5.0;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let away = Duration::from_secs(options.amount(45, 600));
    let does_spool = options.kinds.iter().any(|kind| *kind != Kind::Direct);
    let does_live = options.kinds.contains(&Kind::Direct);
    let hold = format!("hold = \"{}s\"", away.as_secs() + 60);
    let mut plan = Plan { upstream: hold, ..Plan::new(DEVICES, RATE) };
    plan.manner.pace = PACE;
    let mut site = Site::new(options, directory, &plan)?;
    let mut memory = Memory::default();
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    let began = Instant::now();
    memory.watch(&site, QUIET).await;
    memory.before = memory.most;
    let cut = Instant::now();
    site.cut(Some(How::Reset));
    memory.watch(&site, away).await;
    let (waiting, direct) = {
        let ledger = site.ledger.lock();
        (ledger.missing(), ledger.acknowledged(Kind::Direct))
    };
    site.cut(None);
    // Until a connection is there again nothing is drained, and nothing is live.
    let both = |it: &Ledger| {
        (!does_spool || it.missing() < waiting) && (!does_live || it.acknowledged(Kind::Direct) > direct)
    };
    site.until("the gateway is back at the hub", both).await;
    let back = Instant::now();
    let (waiting_then, at_hub) = {
        let ledger = site.ledger.lock();
        (ledger.missing(), ledger.accepted_of_spools)
    };
    // Live messages are on their way all the time.
    tokio::select! {
        _ = site.until("the rest is drained", |it| it.missing() <= DEVICES / 2) => {}
        () = memory.for_ever(&site) => {}
    }
    let drained = Instant::now();
    let drained_messages = site.ledger.lock().accepted_of_spools - at_hub;
    memory.watch(&site, QUIET).await;
    let end = Instant::now();
    site.finish().await?;

    let mut figures = Figures::default();
    let seconds = drained.duration_since(back).as_secs_f64();
    let rate = drained_messages as f64 / seconds;
    let all = site.ledger.lock().acknowledgements.clone();
    let live = |from, to| Latency::between(&all, true, from, to);
    let (before, during) = (live(began, cut), live(back, drained));
    figures.add("away_seconds", away.as_secs());
    figures.add("waiting", waiting);
    figures.add("waiting_when_back", waiting_then);
    figures.add("drained", drained_messages);
    figures.add("drain_seconds", format_args!("{seconds:.2}"));
    figures.add("drain_rate", format_args!("{rate:.0}"));
    figures.add_latency("live_before", before);
    figures.add_latency("live_while_drained", during);
    figures.add_latency("live_after", live(drained, end));
    figures.add_latency("stored_while_away", Latency::between(&all, false, cut, back));
    figures.add("rss_before_kib", memory.before / 1024);
    figures.add("rss_most_kib", memory.most / 1024);
    if does_spool {
        let expected = SPOOLED * away.as_secs_f64();
        site.demand(waiting as f64 >= expected * 0.9, || {
            format!("only {waiting} messages were taken while the hub was away, of {expected}")
        });
        site.demand(rate >= DRAIN * SPOOLED, || {
            format!("{rate:.0} messages a second were drained; they come at {SPOOLED}")
        });
    }
    if does_spool && does_live {
        site.demand(during.count > 0, || "no live message was sent meanwhile: the run shows nothing".into());
        site.demand(during.p99 <= LIVE.max(before.p99 * SLOWER), || {
            format!("live acknowledgements took {:?} (p99) meanwhile, {:?} before", during.p99, before.p99)
        });
    }
    Ok((site, figures))
}

/// The gateway's memory, in bytes.
#[derive(Debug, Default)]
struct Memory {
    before: u64,
    most: u64,
}

impl Memory {
    async fn watch(&mut self, site: &Site, time: Duration) {
        // The end of the time is what is waited for.
        let _ = tokio::time::timeout(time, self.for_ever(site)).await;
    }

    async fn for_ever(&mut self, site: &Site) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.most = self.most.max(site.gateway.resident().unwrap_or_default());
        }
    }
}
