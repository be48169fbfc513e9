//! The file as a person meets it, and as an enemy writes it.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::devices::SpeaksWith;
use crate::devices::password::PasswordHash;
use crate::sas::SharedKey;

use super::*;

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

fn known() -> Known {
    Known { hubs: vec!["upstream".into(), "hub-berlin".into()], spools: None }
}

fn good(text: &str) -> Devices {
    parse("devices.toml", text, &known()).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(text: &str) -> String {
    parse("devices.toml", text, &known()).expect_err("must be refused").to_string()
}

#[test]
fn an_entry_has_all_its_parts() {
    let hash = PasswordHash::generate().unwrap().1;
    let devices = good(&format!(
        "# ours\nversion = 1\n\n[[device]]\nid = \"pump-1\"\nsas_keys = [\"{KEY}\", \"{KEY}\"]\npasswords = \"{}\"\n\
         certificates = [\"CN=pump-1\", \"sha256:{}\"]\npsk = [\"{KEY}\"]\nhub = \"hub-berlin\"\n\
         speaks_with = \"device-key\"\nvia = [\"line\"]\n[device.attributes]\nsite = \"ber\"\nline = \"l1\"\n\
         [[device]]\nid = \"gw\"\nenabled = false\nunproven = true\ngroups = [\"line\"]\n",
        hash.as_str(),
        "Ab".repeat(32),
    ));
    assert_eq!((devices.len(), devices.generation), (2, 0));
    let pump = devices.get("pump-1").unwrap();
    let kinds: Vec<_> = pump.proofs.iter().map(Proof::kind).collect();
    let all = ["sas-key", "sas-key", "password", "certificate-name", "certificate-thumbprint", "psk"];
    assert_eq!(kinds, all);
    assert_eq!(pump.proofs[4], Proof::Thumbprint(Box::new([0xab; 32])));
    assert_eq!(pump.speaks_with, SpeaksWith::DeviceKey(SharedKey::from_base64(KEY).unwrap()));
    assert_eq!((pump.hub.as_deref(), pump.enabled, pump.line), (Some("hub-berlin"), true, 4));
    assert_eq!(
        (pump.attribute("site"), pump.attribute("line"), pump.attribute("x")),
        (Some("ber"), Some("l1"), None)
    );
    let gateway = devices.get("gw").unwrap();
    assert!(!gateway.enabled && gateway.needs_no_proof() && gateway.speaks_with == SpeaksWith::Policy);
    assert!(!pump.lets_act(gateway, "line"), "it is disabled");
    assert!(pump.lets_act(&Device { enabled: true, ..gateway.clone() }, "line"));
    assert!(!gateway.lets_act(pump, "line"));
    let shown = format!("{devices:?}");
    assert!(!shown.contains(KEY) && !shown.contains(hash.as_str()), "{shown}");
    assert!(devices.get("pump").is_none() && devices.get("PUMP-1").is_none() && devices.get("").is_none());
}

#[test]
fn no_file_and_an_empty_one_know_nobody() {
    for text in ["", "\n\n", "# nobody yet\n", "version = 1"] {
        assert_eq!(good(text).len(), 0);
    }
    assert!(load(Path::new("/nowhere/devices.toml"), &known()).unwrap().is_none());
}

#[test]
fn faults_are_told_with_their_place_and_what_would_be_right() {
    for (entry, place, what) in [
        ("id = \"a/b\"", ":5:6:", "the device id holds '/'"),
        ("id = \"\"", ":5:6:", "is empty"),
        ("id = \"..\"", ":5:6:", "relative"),
        ("id = 5", ":5:6:", "expected a"),
        ("enabled = true", ":4:", "missing field `id`"),
        ("id = \"d\"\nenable = true", ":6:1:", "did you mean `enabled`?"),
        ("id = \"d\"\nenabled = \"yes\"", ":6:11:", "boolean"),
        ("id = \"d\"\nhub = \"hub-berlim\"", ":6:7:", "did you mean `hub-berlin`?"),
        ("id = \"d\"\nhub = \"x\"", ":6:7:", "the configuration has `upstream`, `hub-berlin`"),
        ("id = \"d\"\nspeaks_with = \"key\"", ":6:15:", "unknown value `key`"),
        ("id = \"d\"\nspeaks_with = \"device-key\"", ":6:15:", "has none"),
        (
            "id = \"d\"\nspeaks_with = \"policy\"\nhub_key = \"MDEyMzQ1Njc4OWFiY2RlZg==\"",
            ":7:11:",
            "nothing is signed",
        ),
        ("id = \"d\"\nunproven = true\npsk = \"MDEyMzQ1Njc4OWFiY2RlZg==\"", ":6:12:", "without a proof"),
        ("id = \"d\"\nsas_keys = [\"c2hvcnQ=\"]", ":6:12:", "base64 of 16 to 256 bytes"),
        ("id = \"d\"\nsas_keys = [\"not base64\"]", ":6:12:", "base64 of 16 to 256 bytes"),
        ("id = \"d\"\npasswords = [\"plain\"]", ":6:13:", "as its hash"),
        ("id = \"d\"\npsk = \"eA==\"", ":6:7:", "16 to 64"),
        ("id = \"d\"\ncertificates = [\"pump\"]", ":6:16:", "\"CN=pump-1\""),
        ("id = \"d\"\ncertificates = [\"sha256:ab\"]", ":6:16:", "names no certificate"),
        ("id = \"d\"\ncertificates = [\"sha256:é\"]", ":6:16:", "names no certificate"),
        ("id = \"d\"\ngroups = [\"\"]", ":6:10:", "name of a group"),
        ("id = \"d\"\nattributes = { \"\" = \"x\" }", ":6:14:", "name of an attribute"),
        ("id = \"d\"\nattributes = { x = 5 }", ":6:20:", "expected a string"),
        ("id = \"d\"\nid = \"e\"", ":6:1:", "duplicate key"),
        ("id = \"d", ":5:", ""),
        ("id = \"\"\"\n[[device]]\n\"\"\"", ":", "multi-line"),
    ] {
        let text = format!("[[device]]\nid = \"first\"\n\n[[device]]\n{entry}\n");
        let error = refused(&text);
        assert!(error.starts_with(&format!("devices.toml{place}")), "{entry}: {error}");
        assert!(error.contains(what), "{entry}: {error}");
    }
    for (text, what) in [
        ("id = \"d\"", "begins with the line `[[device]]`"),
        ("version = 2", "version 2 of the form"),
        ("device = []", "begins with the line `[[device]]`"),
        ("[device]\nid = \"d\"", "begins with the line `[[device]]`"),
    ] {
        assert!(refused(text).contains(what), "{text}: {}", refused(text));
    }
}

#[test]
fn what_is_there_twice_is_told_with_both_places() {
    let twice = refused("[[device]]\nid = \"a\"\n[[device]]\nid = \"b\"\n[[ device ]] # again\nid = \"a\"\n");
    assert!(
        twice.starts_with("devices.toml:6:6: a second entry for `a`, which line 1 has already"),
        "{twice}"
    );
    let same = |certificate| {
        refused(&format!(
            "[[device]]\nid = \"b\"\ncertificates = [\"{certificate}\"]\n[[device]]\nid = \"a\"\ncertificates = [\"{certificate}\"]\n"
        ))
    };
    assert!(same("CN=x").contains("that `a` in line 4 has already"), "{}", same("CN=x"));
    assert!(same(&format!("sha256:{}", "00".repeat(32))).contains("has already"));
}

#[test]
fn an_error_repeats_no_secret() {
    let secrets = ["MDEyMzQ1Njc4OWFiY2RlZg", "hunter2hunter2"];
    for line in [
        "sas_key = \"MDEyMzQ1Njc4OWFiY2RlZg\"",
        "sas_keys = [\"hunter2hunter2\"]",
        "sas_keys = [\"MDEyMzQ1Njc4OWFiY2RlZg\", 5]",
        "sas_keys = { a = \"hunter2hunter2\" }",
        "passwords = [\n\"hunter2hunter2\"\n]",
        "password = \"hunter2hunter2\"",
        "hub_key = [\"hunter2hunter2\"]",
        "psk = \"hunter2hunter2\" 5",
        "psk = \"hunter2hunter2",
        "sas_keys = [\"hunter2hunter2\" \"MDEyMzQ1Njc4OWFiY2RlZg\"]",
        "enabled = true, psk = \"hunter2hunter2\"",
    ] {
        let error = refused(&format!("[[device]]\nid = \"d\"\n{line}\n"));
        assert!(secrets.iter().all(|secret| !error.contains(secret)), "{line}: {error}");
    }
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = crate::state::tests::Scratch::new();
    let path = scratch.0.join("devices.toml");
    fs::write(&path, "[[device]]\nid = \"d\"\n").unwrap();
    for (mode, is_good) in
        [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false), (0o602, false)]
    {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let loaded = load(&path, &known());
        assert_eq!(loaded.is_ok(), is_good, "{mode:o}");
        if let Err(error) = loaded {
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(load(&path, &known()).is_err());
}

#[test]
fn odd_but_legal_writing_is_read() {
    let devices = good(
        "version=1\r\n  [[device]] # one\r\nid='$%:#'\r\n\r\n[[ device ]]\nid = \"\\u0061b\"\nattributes.site = 'x'\n\
         [[device]]\n\"id\" = \"c\"\n[device.attributes]\n\"b c\" = \"[[device]]\"\n",
    );
    let ids: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
    assert_eq!(ids, ["$%:#", "ab", "c"]);
    assert_eq!(devices.get("c").unwrap().attribute("b c"), Some("[[device]]"));
}

#[test]
fn what_is_huge_is_bounded() {
    let many = |key: &str, one: &str, count| {
        format!("[[device]]\nid = \"d\"\n{key} = [{}]\n", vec![one; count].join(","))
    };
    assert!(refused(&many("sas_keys", &format!("\"{KEY}\""), 9)).contains("more than 8"));
    assert!(refused(&many("groups", "\"g\"", 65)).contains("more than 64"));
    assert!(refused(&many("psk", &format!("\"{}\"", "A".repeat(1 << 20)), 1)).contains("16 to 64"));
    assert!(refused(&many("sas_keys", &format!("\"{}\"", "A".repeat(1 << 20)), 1)).contains("256"));
    assert!(
        refused(&many("passwords", &format!("\"$argon2id${}\"", "A".repeat(1 << 20)), 1)).contains("hash")
    );
    let deep = format!("[[device]]\nid = \"d\"\nattributes = {}", "[".repeat(100_000));
    assert!(!refused(&deep).is_empty());
    let long = refused(&format!("[[device]]\nid = \"{}\"\n", "d".repeat(1 << 20)));
    assert!(long.contains("at most 128") && long.len() < 1000, "{} bytes", long.len());
    let value = format!("[[device]]\nid = \"d\"\nattributes.x = \"{}\"", "v".repeat(1025));
    assert!(refused(&value).contains("longer than 1024"));
}

/// The text of a file with so many devices, each with a key, a hub and two attributes.
pub(crate) fn many(count: usize) -> String {
    let mut text = String::from("version = 1\n");
    for number in 0..count {
        // In no order, as ids come.
        let id = (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16;
        text.push_str(&format!(
            "\n[[device]]\nid = \"pump-{id}\"\nsas_keys = [\"{}\"]\nhub = \"hub-berlin\"\n\
             attributes = {{ site = \"ber-{}\", serial = \"{number}\" }}\n",
            BASE64.encode(id.to_be_bytes().repeat(4)),
            number % 10
        ));
    }
    text
}

#[test]
fn a_hundred_thousand_devices_are_read_fast() {
    let text = many(100_000);
    let begun = Instant::now();
    let devices = good(&text);
    let took = begun.elapsed();
    assert_eq!(devices.len(), 100_000);
    assert!(devices.iter().all(|device| devices.get(device.id.as_str()).is_some()));
    // An optimised build takes a fraction of a second; this is for whoever builds without.
    assert!(took.as_secs() < 20, "{took:?}");
}

/// The rule that keeps messages on the disk is the mapping files' business; that it does is the registry's.
#[test]
fn a_passed_through_token_and_a_rule_that_spools_do_not_go_together() {
    let spooling = Known { spools: Some("mapping.toml:7 `telemetry`".into()), ..known() };
    let parse = |text: &str, known: &Known| parse("devices.toml", text, known);
    let own = |more: &str| {
        format!(
            "[[device]]\nid = \"a\"\n[[device]]\nid = \"d\"\nsas_keys = [\"{KEY}\"]\n{more}speaks_with = \"own-token\"\n"
        )
    };
    let text = own("");
    let error = parse(&text, &spooling).expect_err("must be refused").to_string();
    assert!(error.contains("devices.toml:6") && error.contains("mapping.toml:7 `telemetry`"), "{error}");
    assert!(error.contains("device-key") && !error.contains(KEY), "{error}");
    assert!(parse(&text, &known()).is_ok() && parse(&text, &spooling.clone().without_spool()).is_ok());
    // One that is let in nowhere sends nothing.
    assert!(parse(&own("enabled = false\n"), &spooling).is_ok());
    for word in ["device-key", "policy"] {
        assert!(parse(&text.replace("own-token", word), &spooling).is_ok(), "{word}");
    }
}

#[test]
fn the_rules_say_whether_anything_waits_on_the_disk() {
    use fieldgate_mappings::rules::{RuleSet, Source};
    let rule = |delivery: &str| {
        let text = format!(
            "version = 1\n[[rule]]\nname = \"r\"\ndirection = \"uplink\"\nfrom.mqtt = \"t/{{device}}\"\n\
             to.address = \"devices/{{device}}/messages/events\"\n{delivery}"
        );
        RuleSet::load(&[Source { name: "m.toml", text: &text }]).unwrap_or_else(|error| panic!("{error}"))
    };
    let maps = Config::default();
    let mut maps_not = Config::default();
    maps_not.mqtt_listeners.clear();
    maps_not.coap.listen.clear();
    maps_not.http.listen.clear();
    let spools = |config: &Config, delivery: &str| Known::of(config, &rule(delivery)).spools;
    for delivery in ["delivery.ack = \"on-store\"\n", "delivery.when_offline = {}\n"] {
        assert!(spools(&maps, delivery).is_some_and(|rule| rule.contains("m.toml:")), "{delivery}");
        assert!(spools(&maps_not, delivery).is_none(), "nobody's messages are mapped");
    }
    for delivery in ["", "delivery.priority = 7\n", "delivery.on_error = \"dead-letter\"\n"] {
        assert!(spools(&maps, delivery).is_none(), "{delivery}");
    }
}
