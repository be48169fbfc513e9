//! How far the peer may send ahead in a session: the incoming-window, counted in frames as the protocol does, and
//! measured so that the frames stay below a bound in bytes (2.5.6).
//!
//! A window in frames says little: the same number is a few kilobytes of telemetry or a hundred megabytes of images.
//! So it begins at what full frames allow, and grows as frames turn out to be smaller. When they turn larger, a flow
//! takes back what the peer has not used yet. What it sends before it hears of that is legal, and bounded by the
//! frames that were granted; only a stalled session that goes on far beyond its bytes is ended.

use crate::connection::ConnectionConfig;

/// How many times its bytes a stalled session may receive before it is ended: a peer stops by then, unless it does
/// not heed its window.
const STALLED_EXCESS: u64 = 16;

/// The incoming-window of a session.
#[derive(Debug, Default)]
pub(crate) struct IncomingWindow {
    /// Frames that the peer may still send by the most generous of our flows. Zero before our begin.
    left: u32,
    /// Frames that are left of what the last flow said.
    announced: u32,
    /// What the last flow said that was not withheld.
    size: u32,
    /// What a frame is expected to take, in bytes.
    frame_bytes: u32,
    /// The largest frame since the last flow, in bytes.
    largest: u32,
    /// Bytes that came while stalled.
    stalled_bytes: u64,
    stalled: bool,
}

/// What a transfer frame leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nothing.
    Quiet,
    /// The peer should hear of the window.
    FlowDue,
    /// It was not allowed.
    Violation,
}

impl IncomingWindow {
    /// What our begin says.
    pub(crate) fn begin(&mut self, config: &ConnectionConfig) -> u32 {
        self.largest = config.max_frame_bytes;
        self.announce(config)
    }

    /// What a flow says. A stalled window is not opened; it shrinks where frames have turned out to be larger.
    pub(crate) fn announce(&mut self, config: &ConnectionConfig) -> u32 {
        self.frame_bytes = if self.stalled {
            self.frame_bytes.max(self.largest)
        } else {
            // Falls slowly, so that a few small frames between large ones do not open the window wide.
            self.largest.max(self.frame_bytes / 2).max(1)
        };
        self.largest = 0;
        let allowed = config.incoming_window_bytes / self.frame_bytes.max(1) as usize;
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX).clamp(1, config.incoming_window.max(1));
        if self.stalled {
            self.announced = self.announced.min(allowed);
        } else {
            self.announced = allowed;
            self.size = allowed;
            self.left = self.left.max(allowed);
        }
        self.announced
    }

    /// A transfer frame of `bytes` has come.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize, config: &ConnectionConfig) -> Taken {
        let Some(left) = self.left.checked_sub(1) else { return Taken::Violation };
        self.left = left;
        self.announced = self.announced.saturating_sub(1);
        let bytes = bytes as u32; // A frame's size has 32 bits.
        self.largest = self.largest.max(bytes);
        if self.stalled {
            self.stalled_bytes += u64::from(bytes);
            if self.stalled_bytes > STALLED_EXCESS * config.incoming_window_bytes as u64 {
                return Taken::Violation;
            }
        } else if self.is_low() {
            return Taken::FlowDue;
        }
        let too_much = bytes > self.frame_bytes
            && u64::from(self.announced) * u64::from(bytes) > 2 * config.incoming_window_bytes as u64;
        if too_much { Taken::FlowDue } else { Taken::Quiet }
    }

    /// Whether half of the window is used up.
    fn is_low(&self) -> bool {
        self.announced <= self.size / 2
    }

    /// The window is not opened again until [`resume`](Self::resume).
    pub(crate) fn stall(&mut self) {
        self.stalled = true;
    }

    /// The window may be opened again; true where the peer should hear of it.
    pub(crate) fn resume(&mut self) -> bool {
        self.stalled_bytes = 0;
        std::mem::take(&mut self.stalled) && self.is_low()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConnectionConfig {
        ConnectionConfig {
            max_frame_bytes: 1000,
            incoming_window: 100,
            incoming_window_bytes: 10_000,
            ..ConnectionConfig::default()
        }
    }

    #[test]
    fn it_grows_with_small_frames_and_shrinks_with_large_ones() {
        let config = config();
        let mut window = IncomingWindow::default();
        assert_eq!(window.take(1, &config), Taken::Violation);
        assert_eq!(window.begin(&config), 10);
        for _ in 0..4 {
            assert_eq!(window.take(50, &config), Taken::Quiet);
        }
        assert_eq!(window.take(50, &config), Taken::FlowDue);
        let grown: Vec<_> = (0..5).map(|_| window.announce(&config)).collect();
        assert_eq!(grown, [20, 40, 80, 100, 100]);
        assert_eq!(window.take(900, &config), Taken::FlowDue);
        assert_eq!(window.announce(&config), 11);
        // What was granted before stays legal.
        for _ in 0..99 {
            assert_ne!(window.take(50, &config), Taken::Violation);
        }
        assert_eq!(window.take(50, &config), Taken::Violation);
    }

    #[test]
    fn a_stalled_one_is_not_opened() {
        let config = config();
        let mut window = IncomingWindow::default();
        window.begin(&config);
        window.stall();
        for _ in 0..5 {
            assert_eq!(window.take(400, &config), Taken::Quiet);
        }
        assert_eq!(window.announce(&config), 5);
        assert!(window.resume());
        assert!(!window.resume());
        assert_eq!(window.announce(&config), 20);
        window.stall();
        assert!(!window.resume());
    }

    #[test]
    fn one_that_is_not_heeded_ends() {
        let config = ConnectionConfig { incoming_window_bytes: 100, ..config() };
        let mut window = IncomingWindow::default();
        window.begin(&config);
        for _ in 0..20 {
            window.announce(&config);
        }
        window.stall();
        let taken = (0..100).map(|_| window.take(50, &config)).position(|taken| taken == Taken::Violation);
        assert_eq!(taken, Some(32));
    }
}
