//! What each device was told of each delivery, what the hub has of it, and whether the two agree.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What a device is told of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted,
    Released,
    Modified,
    /// Rejected, or nothing that the specification calls an outcome: never right here.
    Other,
}

#[derive(Clone, Debug)]
struct Delivery {
    device: usize,
    begun: Instant,
    bytes: usize,
    told: Option<(Outcome, Instant)>,
    /// How often it begun at the hub: a gateway never sends twice.
    at_hub: u32,
    /// It came whole, and as it was sent.
    whole: bool,
    accepted_by_hub: bool,
}

#[derive(Clone, Debug, Default)]
struct Device {
    attached: bool,
    credit: u32,
    /// When the last of the deliveries was begun that the hub accepted.
    working: Option<Instant>,
}

/// A time without the hub.
#[derive(Clone, Debug)]
struct Outage {
    cut: Instant,
    restored: Option<Instant>,
    /// Deliveries that had no outcome when it began.
    in_flight: Vec<u64>,
    /// Devices that could still have sent when it ended.
    with_credit: usize,
}

/// The account of one run. Deliveries are numbered over all devices, and the number travels as the delivery-tag and in
/// the message.
#[derive(Debug)]
pub(crate) struct Ledger {
    deliveries: Vec<Delivery>,
    devices: Vec<Device>,
    outages: Vec<Outage>,
    /// Devices whose link was detached, or session ended, or connection lost, in words: the first of these.
    lost: BTreeMap<usize, String>,
    /// What was told twice, and what came to the hub and was never sent like that.
    strange: Vec<String>,
}

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What was not as it was promised; empty when all is well.
    pub(crate) broken: Vec<String>,
    pub(crate) deliveries: usize,
    pub(crate) accepted: usize,
    pub(crate) released: usize,
    pub(crate) modified: usize,
    pub(crate) in_flight_at_cut: usize,
    pub(crate) begun_during_cut: usize,
    pub(crate) detaches: usize,
    /// From the cut until the last delivery in flight had its outcome.
    pub(crate) told_within: Duration,
    /// From the end of the outage until each device had a new delivery accepted.
    pub(crate) working_again_after: Duration,
}

impl Ledger {
    pub(crate) fn new(devices: usize) -> Self {
        Self {
            deliveries: Vec::new(),
            devices: vec![Device::default(); devices],
            outages: Vec::new(),
            lost: BTreeMap::new(),
            strange: Vec::new(),
        }
    }

    /// A device begins a delivery of so many bytes; gives its number.
    pub(crate) fn begin(&mut self, device: usize, bytes: usize, now: Instant) -> u64 {
        self.deliveries.push(Delivery {
            device,
            begun: now,
            bytes,
            told: None,
            at_hub: 0,
            whole: false,
            accepted_by_hub: false,
        });
        self.deliveries.len() as u64 - 1
    }

    /// A device is told what became of a delivery.
    pub(crate) fn told(&mut self, number: u64, outcome: Outcome, now: Instant) {
        let Some(delivery) = self.deliveries.get_mut(number as usize) else { return };
        if let Some((before, _)) = delivery.told {
            self.strange.push(format!("delivery {number} was told {before:?}, then {outcome:?}"));
        }
        delivery.told = Some((outcome, now));
        if outcome == Outcome::Accepted {
            let working = &mut self.devices[delivery.device].working;
            *working = (*working).max(Some(delivery.begun));
        }
    }

    pub(crate) fn attached(&mut self, device: usize) {
        self.devices[device].attached = true;
    }

    /// What a device may send now.
    pub(crate) fn credit(&mut self, device: usize, credit: u32) {
        self.devices[device].credit = credit;
    }

    /// A device has lost its link, its session or its connection.
    pub(crate) fn lost(&mut self, device: usize, what: impl fmt::Display) {
        self.lost.entry(device).or_insert_with(|| format!("device {device}: {what}"));
        self.devices[device].credit = 0;
    }

    /// The first frame of a delivery has come to the hub.
    pub(crate) fn hub_begun(&mut self, number: Option<u64>) {
        match number.and_then(|number| self.deliveries.get_mut(number as usize)) {
            Some(delivery) => delivery.at_hub += 1,
            None => self.strange.push(format!("the hub has a delivery {number:?} that no device sent")),
        }
    }

    /// All of a delivery has come to the hub.
    pub(crate) fn hub_whole(&mut self, number: u64, message: &[u8]) {
        let Some(delivery) = self.deliveries.get_mut(number as usize) else { return };
        delivery.whole = *message == *super::device::message(number, delivery.bytes);
        if !delivery.whole {
            self.strange.push(format!("delivery {number} is not what was sent: {} bytes", message.len()));
        }
    }

    /// The hub has taken a delivery, and says so next.
    pub(crate) fn hub_accepted(&mut self, number: u64) {
        if let Some(delivery) = self.deliveries.get_mut(number as usize) {
            delivery.accepted_by_hub = true;
        }
    }

    /// The connection to the hub is cut now.
    pub(crate) fn cut(&mut self, now: Instant) {
        let open = self.deliveries.iter().enumerate().filter(|(_, delivery)| delivery.told.is_none());
        let in_flight = open.map(|(number, _)| number as u64).collect();
        self.outages.push(Outage { cut: now, restored: None, in_flight, with_credit: 0 });
    }

    /// The hub can be reached from now on.
    pub(crate) fn restored(&mut self, now: Instant) {
        let with_credit = self.devices.iter().filter(|device| device.credit > 0).count();
        if let Some(outage) = self.outages.last_mut() {
            outage.restored = Some(now);
            outage.with_credit = with_credit;
        }
    }

    /// Devices that have a link.
    pub(crate) fn attached_devices(&self) -> usize {
        self.devices.iter().filter(|device| device.attached).count()
    }

    /// Whether every device has had a delivery accepted that it began after this.
    pub(crate) fn all_working_since(&self, since: Instant) -> bool {
        self.devices.iter().all(|device| device.working.is_some_and(|begun| begun > since))
    }

    /// Deliveries without an outcome.
    pub(crate) fn open(&self) -> usize {
        self.deliveries.iter().filter(|delivery| delivery.told.is_none()).count()
    }

    pub(crate) fn is_broken(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Judges the whole run.
    pub(crate) fn verdict(&self) -> Verdict {
        let mut verdict =
            Verdict { deliveries: self.deliveries.len(), detaches: self.lost.len(), ..Verdict::default() };
        let mut broken = Broken::default();
        self.lost.values().for_each(|what| broken.add("devices that lost their link", what));
        self.strange.iter().for_each(|what| broken.add("told twice, or never sent like that", what));
        for (number, delivery) in self.deliveries.iter().enumerate() {
            self.judge(number, delivery, &mut verdict, &mut broken);
        }
        for outage in &self.outages {
            self.judge_outage(outage, &mut verdict, &mut broken);
        }
        verdict.broken = broken
            .0
            .into_iter()
            .map(|(law, count, first)| format!("{law}: {count}, first: {first}"))
            .collect();
        verdict
    }

    fn judge(&self, number: usize, delivery: &Delivery, verdict: &mut Verdict, broken: &mut Broken) {
        let of = format_args!("delivery {number} of device {}", delivery.device).to_string();
        if delivery.at_hub > 1 {
            broken.add("came to the hub more than once", &of);
        }
        match delivery.told.map(|(outcome, _)| outcome) {
            None => broken.add("never had an outcome", &of),
            Some(Outcome::Accepted) => {
                verdict.accepted += 1;
                if !delivery.accepted_by_hub || !delivery.whole {
                    broken.add("told accepted, which the hub did not accept", &of);
                }
            }
            Some(Outcome::Released) => {
                verdict.released += 1;
                if delivery.at_hub > 0 {
                    broken.add("told released, which had come to the hub", &of);
                }
            }
            Some(Outcome::Modified) => verdict.modified += 1,
            Some(Outcome::Other) => {
                broken.add("told something else than accepted, released or modified", &of)
            }
        }
    }

    fn judge_outage(&self, outage: &Outage, verdict: &mut Verdict, broken: &mut Broken) {
        let Some(restored) = outage.restored else { return };
        if outage.in_flight.is_empty() {
            broken.add("nothing was in flight at the cut, so nothing is shown", "");
        }
        verdict.in_flight_at_cut += outage.in_flight.len();
        for &number in &outage.in_flight {
            let delivery = &self.deliveries[number as usize];
            match delivery.told {
                Some((_, at)) if at < restored => {
                    verdict.told_within = verdict.told_within.max(at.duration_since(outage.cut));
                }
                _ => broken.add(
                    "in flight at the cut and without an outcome until its end",
                    &format!("delivery {number}"),
                ),
            }
        }
        let during = self.deliveries.iter().filter(|it| outage.cut < it.begun && it.begun < restored);
        verdict.begun_during_cut += during.count();
        if outage.with_credit > 0 {
            broken.add("outages at whose end devices had credit", &format!("{} devices", outage.with_credit));
        }
        for (number, device) in self.devices.iter().enumerate() {
            match self.first_accepted_after(number, restored) {
                Some(at) => {
                    verdict.working_again_after =
                        verdict.working_again_after.max(at.duration_since(restored));
                }
                None if device.attached => broken.add("did not work again", &format!("device {number}")),
                None => broken.add("never attached", &format!("device {number}")),
            }
        }
    }

    /// When a device was told that a delivery was accepted that it had begun after this.
    fn first_accepted_after(&self, device: usize, since: Instant) -> Option<Instant> {
        let mine = self.deliveries.iter().filter(|it| it.device == device && it.begun > since);
        mine.filter_map(|it| it.told.filter(|(outcome, _)| *outcome == Outcome::Accepted).map(|(_, at)| at))
            .min()
    }
}

/// Laws that were broken: how often, and the first case of each.
#[derive(Debug, Default)]
struct Broken(Vec<(&'static str, usize, String)>);

impl Broken {
    fn add(&mut self, law: &'static str, case: &str) {
        match self.0.iter_mut().find(|(known, _, _)| *known == law) {
            Some((_, count, _)) => *count += 1,
            None => self.0.push((law, 1, case.to_owned())),
        }
    }
}

impl Verdict {
    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        let broken: Vec<_> = self.broken.iter().map(|law| format!("{law:?}")).collect();
        format!(
            "{{\"kept\":{},\"deliveries\":{},\"accepted\":{},\"released\":{},\"modified\":{},\"in_flight_at_cut\":{},\
             \"begun_during_cut\":{},\"detaches\":{},\"told_within_ms\":{},\"working_again_after_ms\":{},\"broken\":[{}]}}",
            self.broken.is_empty(),
            self.deliveries,
            self.accepted,
            self.released,
            self.modified,
            self.in_flight_at_cut,
            self.begun_during_cut,
            self.detaches,
            self.told_within.as_millis(),
            self.working_again_after.as_millis(),
            broken.join(","),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::message;
    use super::*;

    /// A run in which one device has sent a delivery before a cut and one after it, both accepted rightly, and another
    /// that was in flight; what became of that one is the test's.
    fn run(then: impl FnOnce(&mut Ledger, u64, Instant)) -> Vec<String> {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ledger = Ledger::new(1);
        ledger.attached(0);
        let accept = |ledger: &mut Ledger, now| {
            let number = ledger.begin(0, 30, now);
            ledger.hub_begun(Some(number));
            ledger.hub_whole(number, &message(number, 30));
            ledger.hub_accepted(number);
            ledger.told(number, Outcome::Accepted, now);
        };
        accept(&mut ledger, at(0));
        let number = ledger.begin(0, 30, at(1));
        ledger.cut(at(2));
        then(&mut ledger, number, at(3));
        ledger.restored(at(10));
        accept(&mut ledger, at(11));
        ledger.verdict().broken
    }

    #[test]
    fn released_and_modified_are_what_may_be_told_of_what_was_cut() {
        assert_eq!(run(|ledger, number, now| ledger.told(number, Outcome::Released, now)), [""; 0]);
        let modified = run(|ledger, number, now| {
            ledger.hub_begun(Some(number));
            ledger.told(number, Outcome::Modified, now);
        });
        assert_eq!(modified, [""; 0]);
    }

    #[test]
    fn each_broken_promise_is_found() {
        let found = |then: fn(&mut Ledger, u64, Instant), law: &str| {
            let broken = run(then);
            assert!(broken.iter().any(|it| it.starts_with(law)), "{law}: {broken:?}");
        };
        found(|_, _, _| {}, "never had an outcome");
        found(|_, _, _| {}, "in flight at the cut and without");
        found(
            |ledger, number, now| ledger.told(number, Outcome::Accepted, now),
            "told accepted, which the hub",
        );
        found(
            |ledger, number, now| {
                ledger.hub_begun(Some(number));
                ledger.told(number, Outcome::Released, now);
            },
            "told released, which had come",
        );
        found(
            |ledger, number, now| {
                ledger.hub_begun(Some(number));
                ledger.hub_begun(Some(number));
                ledger.told(number, Outcome::Modified, now);
            },
            "came to the hub more than once",
        );
        found(|ledger, number, now| ledger.told(number, Outcome::Other, now), "told something else");
        found(|ledger, _, _| ledger.lost(0, "detached"), "devices that lost");
        found(|ledger, _, _| ledger.hub_begun(Some(99)), "told twice");
        found(|ledger, number, _| ledger.hub_whole(number, b"x"), "told twice");
        found(|ledger, _, _| ledger.credit(0, 1), "outages at whose end devices had credit");
        found(
            |ledger, number, now| {
                ledger.told(number, Outcome::Released, now);
                ledger.told(number, Outcome::Released, now);
            },
            "told twice",
        );
    }

    #[test]
    fn a_run_that_shows_nothing_is_not_kept() {
        let mut ledger = Ledger::new(1);
        let now = Instant::now();
        ledger.cut(now);
        ledger.restored(now + Duration::from_secs(1));
        let broken = ledger.verdict().broken;
        assert!(broken.iter().any(|it| it.starts_with("nothing was in flight")), "{broken:?}");
        assert!(broken.iter().any(|it| it.starts_with("never attached")), "{broken:?}");
    }
}
