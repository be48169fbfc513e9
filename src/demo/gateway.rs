//! The gateway with its embedded hub, started as `fieldgate run` starts it, on a thread of its own.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use super::DemoError;
use crate::app::{self, AppError, Started};
use crate::config::Config;
use crate::shutdown::{self, Shutdown, Trigger};

/// The gateway while it runs.
pub(super) struct Gateway {
    stop: Trigger,
    ended: oneshot::Receiver<Result<(), AppError>>,
    thread: JoinHandle<()>,
    /// How long its stop may wait for what is in flight.
    drain: Duration,
}

impl Gateway {
    /// Starts it; the receiver hears when everything listens.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(config: Config) -> io::Result<(Self, oneshot::Receiver<Started>)> {
        let (stop, stopping) = shutdown::channel();
        let (tell, started) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let drain = config.runtime.drain;
        let thread = thread::Builder::new().name("gateway".into()).spawn(move || {
            let outcome = app::run_and_tell(config, &stopping, |started| {
                // Nobody waits for it any more when the demo was stopped meanwhile.
                let _ = tell.send(started);
            });
            let _ = end.send(outcome);
        })?;
        Ok((Self { stop, ended, thread, drain }, started))
    }

    /// Waits for an end that nobody asked for, and says why it came. Cancel safe.
    pub(super) async fn failed(&mut self) -> DemoError {
        match (&mut self.ended).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => DemoError::Gateway,
        }
    }

    /// Stops it in order, for as long as the configuration allows, or as the user does.
    ///
    /// # Errors
    /// What it reports at its end.
    pub(super) async fn stop(mut self, shutdown: &Shutdown) -> Result<(), DemoError> {
        self.stop.drain();
        let ended = tokio::select! {
            ended = &mut self.ended => ended,
            () = async {
                tokio::select! {
                    () = tokio::time::sleep(self.drain) => {}
                    () = shutdown.aborting() => {}
                }
            } => {
                self.stop.abort();
                self.ended.await
            }
        };
        let joined = self.thread.join();
        match (ended, joined) {
            (Ok(outcome), Ok(())) => Ok(outcome?),
            _ => Err(DemoError::Gateway),
        }
    }
}
