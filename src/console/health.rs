//! How the parts of the process are, for `/healthz`.

use serde::Serialize;
use tokio::sync::watch;

/// A part whose state is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// The embedded hub.
    Hub,
    /// The connections to the hub.
    Upstream,
    /// The listener for AMQP devices.
    Amqp,
    /// The listener for MQTT devices.
    Mqtt,
    /// The listener for CoAP devices.
    Coap,
    /// The listener for HTTP devices.
    Http,
}

const COMPONENTS: [Component; 6] =
    [Component::Hub, Component::Upstream, Component::Amqp, Component::Mqtt, Component::Coap, Component::Http];

/// How a part is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not configured; no part of the answer.
    #[default]
    Absent,
    /// On its way up for the first time.
    Starting,
    /// Does its work.
    Up,
    /// Does not do its work, and tries again.
    Down,
    /// Finishes what is in flight.
    Draining,
}

/// The state of every part; one for the process, shared by `Arc`.
#[derive(Debug)]
pub struct Health {
    parts: watch::Sender<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    said: [Status; COMPONENTS.len()],
    /// Each worker's connection to the hub; the worst of them is the part's state.
    workers: Vec<Status>,
}

impl Default for Health {
    fn default() -> Self {
        Self { parts: watch::Sender::new(Parts::default()) }
    }
}

impl Health {
    /// Says how a part is from now on.
    pub fn set(&self, component: Component, status: Status) {
        self.parts.send_modify(|parts| parts.said[component as usize] = status);
    }

    /// Says how the hub connection of one worker is from now on. The part is up when all of them are.
    pub fn set_upstream(&self, worker: usize, status: Status) {
        self.parts.send_modify(|parts| {
            if parts.workers.len() <= worker {
                parts.workers.resize(worker + 1, Status::Starting);
            }
            parts.workers[worker] = status;
            parts.said[Component::Upstream as usize] = overall(&parts.workers);
        });
    }

    /// How a part was said to be last.
    #[must_use]
    pub fn get(&self, component: Component) -> Status {
        self.parts.borrow().said[component as usize]
    }

    /// Whether the process does its work: every part that is configured is up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        overall(&self.parts.borrow().said) == Status::Up
    }

    /// Waits until the process does its work; at once if it does. Cancel safe.
    pub async fn ready(&self) {
        let mut parts = self.parts.subscribe();
        // An error would mean that the sender is gone, and `self` holds it.
        let _ = parts.wait_for(|parts| overall(&parts.said) == Status::Up).await;
    }

    /// The answer of `/healthz`: `{"status":"up","components":{"upstream":"up",…}}`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let parts = self.parts.borrow().said;
        let components: serde_json::Map<String, serde_json::Value> = COMPONENTS
            .iter()
            .zip(parts)
            .filter(|(_, status)| *status != Status::Absent)
            .map(|(component, status)| (word(component), word(&status).into()))
            .collect();
        serde_json::json!({ "status": word(&overall(&parts)), "components": components }).to_string()
    }
}

/// The worst of the parts is the whole's; before any part has said something, the whole is starting.
fn overall(parts: &[Status]) -> Status {
    [Status::Draining, Status::Down, Status::Starting, Status::Up]
        .into_iter()
        .find(|status| parts.contains(status))
        .unwrap_or(Status::Starting)
}

/// The name that serde gives a variant.
fn word(variant: &impl Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_ready_when_every_part_is_up() {
        let health = Health::default();
        assert!(!health.is_ready());
        assert_eq!(health.to_json(), r#"{"components":{},"status":"starting"}"#);
        health.set(Component::Mqtt, Status::Up);
        health.set(Component::Upstream, Status::Starting);
        assert!(!health.is_ready());
        assert_eq!(
            health.to_json(),
            r#"{"components":{"mqtt":"up","upstream":"starting"},"status":"starting"}"#
        );
        health.set(Component::Upstream, Status::Up);
        assert!(health.is_ready());
        assert_eq!(health.get(Component::Upstream), Status::Up);
        for (status, whole) in [(Status::Down, "down"), (Status::Draining, "draining")] {
            health.set(Component::Mqtt, status);
            assert!(!health.is_ready());
            assert!(health.to_json().ends_with(&format!(r#""status":"{whole}"}}"#)), "{}", health.to_json());
        }
    }
    #[test]
    fn whoever_waits_for_readiness_hears_of_it() {
        use std::future::Future as _;
        use std::pin::pin;
        use std::task::{Context, Poll, Waker};

        let health = Health::default();
        health.set(Component::Upstream, Status::Starting);
        let mut ready = pin!(health.ready());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(ready.as_mut().poll(&mut cx).is_pending());
        health.set(Component::Mqtt, Status::Up);
        assert!(ready.as_mut().poll(&mut cx).is_pending());
        health.set(Component::Upstream, Status::Up);
        assert_eq!(ready.as_mut().poll(&mut cx), Poll::Ready(()));
    }

    #[test]
    fn one_worker_without_the_hub_is_no_gateway_that_is_up() {
        let health = Health::default();
        health.set_upstream(1, Status::Up);
        assert_eq!(health.get(Component::Upstream), Status::Starting, "worker 0 has said nothing yet");
        health.set_upstream(0, Status::Up);
        assert!(health.is_ready());
        health.set_upstream(0, Status::Down);
        health.set_upstream(1, Status::Up);
        assert_eq!(health.get(Component::Upstream), Status::Down);
        health.set_upstream(0, Status::Up);
        assert!(health.is_ready());
    }
}
