//! How the parts of the process are, for `/healthz`.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// The device registry: down while its file is not good, and an older state of it holds.
    Devices,
    /// The disk that messages are kept on while the hub is away.
    Spool,
}

const COMPONENTS: [Component; 8] = [
    Component::Hub,
    Component::Upstream,
    Component::Amqp,
    Component::Mqtt,
    Component::Coap,
    Component::Http,
    Component::Devices,
    Component::Spool,
];

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
    /// The shared connections of each connector.
    connectors: BTreeMap<Arc<str>, Links>,
}

/// How many shared connections of a connector are how.
#[derive(Clone, Copy, Debug, Default)]
struct Links {
    up: usize,
    starting: usize,
    down: usize,
    devices: usize,
    /// Of those that start, those that are to be there without a device that needs them.
    awaited: usize,
}

impl Links {
    fn count(&mut self, status: Status) -> Option<&mut usize> {
        match status {
            Status::Up => Some(&mut self.up),
            Status::Starting => Some(&mut self.starting),
            Status::Down => Some(&mut self.down),
            Status::Absent | Status::Draining => None,
        }
    }

    /// A connector without connections does its work: it makes them when they are needed.
    fn status(self) -> Status {
        match self {
            Self { down: 1.., .. } => Status::Down,
            Self { awaited: 1.., .. } => Status::Starting,
            _ => Status::Up,
        }
    }
}

/// A shared connection of a connector, which counts as long as this lives. At first it is starting.
#[derive(Debug)]
pub(crate) struct Link {
    health: Arc<Health>,
    connector: Arc<str>,
    status: Status,
    awaited: bool,
    devices: usize,
}

impl Link {
    /// Says how the connection is from now on: up, or down.
    pub(crate) fn set(&mut self, status: Status) {
        if self.status != status {
            let before = std::mem::replace(&mut self.status, status);
            let awaited = std::mem::take(&mut self.awaited);
            self.change(|links| {
                if let Some(count) = links.count(before) {
                    *count -= 1;
                }
                if let Some(count) = links.count(status) {
                    *count += 1;
                }
                links.awaited -= usize::from(awaited);
            });
        }
    }

    /// Says how many devices have sessions on the connection.
    pub(crate) fn set_devices(&mut self, devices: usize) {
        if self.devices != devices {
            let before = std::mem::replace(&mut self.devices, devices);
            self.change(|links| links.devices = links.devices + devices - before);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Links)) {
        self.health
            .parts
            .send_modify(|parts| change(parts.connectors.entry(Arc::clone(&self.connector)).or_default()));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.set_devices(0);
        self.set(Status::Absent);
    }
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

    /// Tells of a connector, which has no connection yet.
    pub(crate) fn add_connector(&self, name: &Arc<str>) {
        self.parts.send_modify(|parts| {
            parts.connectors.entry(Arc::clone(name)).or_default();
        });
    }

    /// A shared connection of a connector begins; `awaited` if the process is not ready without it.
    pub(crate) fn add_link(self: &Arc<Self>, connector: &Arc<str>, awaited: bool) -> Link {
        let link = Link {
            health: Arc::clone(self),
            connector: Arc::clone(connector),
            status: Status::Starting,
            awaited,
            devices: 0,
        };
        link.change(|links| {
            links.starting += 1;
            links.awaited += usize::from(awaited);
        });
        link
    }

    /// How a part was said to be last.
    #[must_use]
    pub fn get(&self, component: Component) -> Status {
        self.parts.borrow().said[component as usize]
    }

    /// Whether the process does its work: every part that is configured is up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.parts.borrow().overall() == Status::Up
    }

    /// Waits until the process does its work; at once if it does. Cancel safe.
    pub async fn ready(&self) {
        let mut parts = self.parts.subscribe();
        // An error would mean that the sender is gone, and `self` holds it.
        let _ = parts.wait_for(|parts| parts.overall() == Status::Up).await;
    }

    /// The answer of `/healthz`: `{"status":"up","components":{"upstream":"up",…}}`, and where there are connectors
    /// `"connectors":{"upstream":{"status":"up","connections":{"up":1,…},"devices":7}}`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let parts = self.parts.borrow();
        let components: serde_json::Map<String, serde_json::Value> = COMPONENTS
            .iter()
            .zip(parts.said)
            .filter(|(_, status)| *status != Status::Absent)
            .map(|(component, status)| (word(component), word(&status).into()))
            .collect();
        let mut answer = serde_json::json!({ "status": word(&parts.overall()), "components": components });
        if !parts.connectors.is_empty() {
            let told = |(name, links): (&Arc<str>, &Links)| {
                let Links { up, starting, down, devices, .. } = links;
                let connections = serde_json::json!({ "up": up, "starting": starting, "down": down });
                let status = word(&links.status());
                let told = serde_json::json!({
                    "status": status, "connections": connections, "devices": devices
                });
                (name.to_string(), told)
            };
            let connectors: serde_json::Map<_, _> = parts.connectors.iter().map(told).collect();
            answer["connectors"] = connectors.into();
        }
        answer.to_string()
    }
}

impl Parts {
    /// The worst of the parts and connectors is the whole's.
    fn overall(&self) -> Status {
        let mut said = self.said;
        let connectors = self.connectors.values().map(|links| links.status());
        // An older registry does its work; whoever restarted the process for it would have none.
        let devices = &mut said[Component::Devices as usize];
        *devices = if *devices == Status::Down { Status::Up } else { *devices };
        let all: Vec<_> = said.into_iter().chain(connectors.filter(|it| *it != Status::Up)).collect();
        overall(&all)
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
    fn a_connector_is_as_well_as_its_connections() {
        let health = Arc::new(Health::default());
        health.set(Component::Amqp, Status::Up);
        let name = Arc::from("berlin");
        health.add_connector(&name);
        assert!(health.is_ready(), "connections are made when they are needed");
        let mut on_demand = health.add_link(&name, false);
        assert!(health.is_ready());
        let mut at_start = health.add_link(&name, true);
        assert!(!health.is_ready());
        at_start.set(Status::Up);
        assert!(health.is_ready());
        on_demand.set(Status::Down);
        at_start.set_devices(2);
        assert_eq!(
            health.to_json(),
            concat!(
                r#"{"components":{"amqp":"up"},"connectors":{"berlin":{"connections":"#,
                r#"{"down":1,"starting":0,"up":1},"devices":2,"status":"down"}},"status":"down"}"#
            )
        );
        drop((on_demand, at_start));
        assert!(health.to_json().contains(r#""connections":{"down":0,"starting":0,"up":0},"devices":0"#));
        assert!(health.is_ready());
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
