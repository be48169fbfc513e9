//! Back-pressure on shared connections: a device that does not take what it is sent, or sends more than its hub takes,
//! is held up, and the others are not.

use super::ends::{DeviceKey, TrunkKey, TrunkKind, Way};
use super::machine::{Router, held_down};
use super::seat::{MAX_BACKLOG_BYTES, Seat};

/// While this much waits for a device, the hub is told to keep what it has for it.
pub(super) const STALL_BYTES: usize = 256 * 1024;

impl Router {
    pub(super) fn hears_shared(&mut self, key: DeviceKey) -> bool {
        let held_up = self.held_up(key);
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return false };
        if device.seat.finished {
            return true; // Nothing more is read; what has come is handled.
        }
        if !device.seat.has_room() || held_up >= MAX_BACKLOG_BYTES && held_down(device) < MAX_BACKLOG_BYTES {
            return false;
        }
        let Way::Shared(shared) = &mut device.way else { return true };
        for lane in &shared.lanes {
            let Some(trunk) = trunks.get_mut(lane.trunk) else { continue };
            if trunk.seat.as_ref().is_some_and(|seat| !seat.has_room()) {
                if let (false, TrunkKind::Shared(of)) = (shared.queued, &mut trunk.kind) {
                    shared.queued = true;
                    of.waiting.push(key);
                }
                return false;
            }
        }
        true
    }

    /// Wakes the devices that wait for room, once there is some; and those behind a window that has opened.
    pub(super) fn serve_waiting(&mut self, key: TrunkKey) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let has_room = trunk.seat.as_ref().is_none_or(Seat::has_room);
        let Some(shared) = trunk.shared().filter(|shared| has_room && !shared.waiting.is_empty()) else {
            return;
        };
        for key in std::mem::take(&mut shared.waiting) {
            let Some(device) = devices.get_mut(key) else { continue };
            device.seat.wake();
            if let Some(shared) = device.shared() {
                shared.queued = false;
            }
        }
    }

    pub(super) fn wake_trunks_of(&mut self, key: DeviceKey) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get(key) else { return };
        let Way::Shared(shared) = &device.way else { return };
        for lane in &shared.lanes {
            if let Some(seat) = trunks.get_mut(lane.trunk).and_then(|trunk| trunk.seat.as_mut())
                && seat.machine.output_bytes() > 0
            {
                seat.wake();
            }
        }
    }

    /// Lets hubs send again what a device has room for.
    pub(super) fn resume_windows(&mut self, key: DeviceKey) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        if matches!(device.way, Way::Paired { .. }) || device.seat.backlog() >= STALL_BYTES / 2 {
            return;
        }
        let machine = &device.seat.machine;
        for (session, down) in device.sessions.iter_mut() {
            for up in down.ups.iter_mut().filter(|up| up.stalled) {
                if machine.session_backlog_bytes(session) >= STALL_BYTES / 2 {
                    continue;
                }
                up.stalled = false;
                let hub = trunks.get_mut(up.trunk).and_then(|trunk| trunk.seat.as_mut());
                if let (Some(hub), Some(session)) = (hub, up.session) {
                    hub.machine.resume(session);
                    hub.wake();
                }
            }
        }
    }
}
