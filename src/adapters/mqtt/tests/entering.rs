//! CONNECT of devices whose own tokens the hub is shown: it waits for the hub's word.

use std::task::{Context, Waker};
use std::time::Duration;

use fieldgate_mappings::Reason;
use fieldgate_mappings::outcome::Outcome;
use fieldgate_mqtt::client::{ConnectOptions, ServerPacket};
use fieldgate_mqtt::{QoS, Version};

use crate::output::unix_seconds;
use crate::sas::{SharedKey, Signer};
use crate::wire::Machine as _;

use super::bench::{Bench, COMMANDS, Device, EVENTS, rejected};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

fn own_token() -> String {
    let key = SharedKey::from_base64(KEY).unwrap();
    Signer::new(None, key).token("hub.example/devices/d1", unix_seconds() + 60)
}

fn devices(more: &str) -> String {
    format!("[[device]]\nid = \"d1\"\nsas_keys = [\"{KEY}\"]\n{more}")
}

fn hear(device: &mut Device) -> Vec<ServerPacket> {
    device.session.listen(&mut Context::from_waker(Waker::noop()));
    device.hear()
}

#[test]
fn a_device_that_brings_its_own_token_is_let_in_when_the_hub_takes_it() {
    let refused = rejected(Reason::Credentials);
    for (version, word, code) in [
        (Version::V311, Some(Outcome::Accepted), 0),
        (Version::V5, Some(Outcome::Accepted), 0),
        (Version::V311, Some(refused.clone()), 5),
        (Version::V5, Some(refused), 0x87),
        (Version::V5, Some(Outcome::Released), 0x88),
        (Version::V311, None, 3),
        (Version::V5, None, 0x88),
    ] {
        let bench = Bench::with_devices("", &devices("speaks_with = \"own-token\""));
        let mut device = Device::new(&bench, version);
        let token = own_token();
        let options = ConnectOptions {
            username: Some("hub.example/d1/?api-version=2021-04-12"),
            password: Some(token.as_bytes()),
            ..ConnectOptions::new(version, "d1")
        };
        assert_eq!(device.connect(&options), None, "it waits");
        // What it sends meanwhile waits as well.
        device.publish(1, QoS::AtLeastOnce, EVENTS, b"x");
        assert_eq!((hear(&mut device), bench.sent.borrow().len()), (vec![], 0));
        match word {
            Some(word) => bench.proofs.borrow_mut().pop_front().expect("the hub is asked").report(word),
            None => {
                let until = device.session.poll_timeout().expect("it is bounded");
                assert_eq!(until, device.now + Duration::from_secs(10));
                device.pass(Duration::from_secs(10));
            }
        }
        match &hear(&mut device)[..] {
            [ServerPacket::ConnAck(connack)] => assert_eq!(connack.code, code, "{version:?}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            (device.session.is_over(), bench.sent.borrow().len()),
            (code != 0, usize::from(code == 0))
        );
        if code == 0 {
            assert_eq!(device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]), [1]);
        }
    }
}

#[test]
fn nobody_else_waits_for_the_hub() {
    let bench = Bench::with_devices("", &devices(""));
    let token = own_token();
    let options =
        ConnectOptions { password: Some(token.as_bytes()), ..ConnectOptions::new(Version::V5, "d1") };
    assert_eq!(Device::new(&bench, Version::V5).connect(&options), Some(0));
    assert!(bench.proofs.borrow().is_empty());
}
