//! Who is let in by what, and what they are told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;
use crate::devices::Known;
use crate::devices::roster::Over;
use crate::sas::Signer;
use crate::state::tests::Scratch;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER: &str = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q=";

pub(crate) const LIMITS: LimitSettings =
    LimitSettings { per_device: 3, per_address: 20, longest: Duration::from_secs(60) };

struct World {
    gate: Arc<Gate>,
    path: PathBuf,
    _scratch: Scratch,
}

fn write(path: &PathBuf, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl World {
    fn new(text: &str) -> Self {
        let scratch = Scratch::new();
        let path = scratch.0.join("devices.toml");
        write(&path, text);
        let registry = Registry::load(&path, Known::default()).unwrap_or_else(|error| panic!("{error}"));
        let settings =
            GateSettings { hosts: vec!["Hub.Example".into(), "gateway.local:8883".into()], limits: LIMITS };
        Self { gate: Gate::new(registry, settings), path, _scratch: scratch }
    }

    fn judge(&self, device: &str, shown: Shown<'_>, peer: IpAddr, believes: bool) -> Result<Pass, Denied> {
        let device = DeviceId::new(device).unwrap();
        let attempt = Attempt { protocol: Protocol::Mqtt, peer, device: &device, shown, believes };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.gate.judge(&self.gate.registry().snapshot(), attempt).answer())
    }

    fn password(&self, device: &str, password: &str) -> Result<By, Denied> {
        self.judge(device, Shown::Password(password.as_bytes()), AWAY, false).map(|pass| pass.by)
    }

    fn reload(&self, text: &str) {
        write(&self.path, text);
        self.gate.registry().reload().unwrap_or_else(|error| panic!("{error}"));
    }

    fn still(&self, pass: &Pass) -> Result<(), Over> {
        self.gate.still(&self.gate.registry().snapshot(), pass)
    }
}

fn token(key: &str, resource: &str, seconds: i64) -> String {
    let expiry = unix_seconds().checked_add_signed(seconds).unwrap();
    Signer::new(None, SharedKey::from_base64(key).unwrap()).token(resource, expiry)
}

fn entry(id: &str, rest: &str) -> String {
    format!("[[device]]\nid = \"{id}\"\n{rest}\n")
}

#[test]
fn a_token_lets_in_the_device_whose_key_signed_it() {
    let world = World::new(
        &(entry("d", &format!("sas_keys = [\"{OTHER}\", \"{KEY}\"]"))
            + &entry("e", &format!("sas_keys = [\"{OTHER}\"]"))
            + &entry("a:b", &format!("sas_keys = [\"{KEY}\"]\nspeaks_with = \"own-token\""))
            + &entry("no-key", "")),
    );
    for resource in ["hub.example/devices/d", "HUB.example:5671/devices/d", "amqps://gateway.local/Devices/d"]
    {
        let text = token(KEY, resource, 60);
        let pass = world.judge("d", Shown::Password(text.as_bytes()), AWAY, false).unwrap();
        assert!(matches!(pass.by, By::Token(_)) && pass.until.is_some() && pass.token().is_none());
    }
    // .NET encodes the id, and then the resource.
    let twice = token(KEY, "hub.example/devices/a%3Ab", 60);
    let pass = world.judge("a:b", Shown::Password(twice.as_bytes()), AWAY, false).unwrap();
    assert_eq!(pass.token().unwrap().expose(), twice, "to be passed on as it is");
    let signature = Denied::Token(TokenError::Signature);
    let for_other = Denied::Wrong("its token is not for this device");
    for (device, key, resource, seconds, denied) in [
        ("d", KEY, "hub.example/devices/d", -1, Denied::Token(TokenError::Expired)),
        ("d", KEY, "hub.example/devices/d2", 60, for_other.clone()),
        ("d", KEY, "hub.example/devices/D", 60, for_other.clone()),
        ("d", KEY, "hub.example/devices/d/modules/m", 60, for_other.clone()),
        ("d", KEY, "hub.example", 60, for_other.clone()),
        ("e", KEY, "hub.example/devices/e", 60, signature.clone()),
        // The other's key and token, under the own name, and the other way round.
        ("e", OTHER, "hub.example/devices/d", 60, for_other),
        ("no-key", KEY, "hub.example/devices/no-key", 60, signature),
        ("x", KEY, "hub.example/devices/x", 60, Denied::Unknown),
        (
            "d",
            KEY,
            "other.example/devices/d",
            60,
            Denied::Wrong("its token is for a host that is neither its hub nor this gateway"),
        ),
    ] {
        let got = world.password(device, &token(key, resource, seconds));
        assert_eq!(got, Err(denied), "{device} {resource}");
    }
    let policy = Signer::new(Some("owner".into()), SharedKey::from_base64(KEY).unwrap());
    let policy = policy.token("hub.example/devices/d", unix_seconds() + 60);
    assert!(matches!(world.password("d", &policy), Err(Denied::Wrong(why)) if why.contains("policy")));
    let malformed = world.password("d", "SharedAccessSignature sr=hub");
    assert!(matches!(malformed, Err(Denied::Token(TokenError::Malformed(_)))));
}

#[test]
fn a_password_lets_in_and_is_cheap_the_second_time() {
    let slow = PasswordHash::of_chosen(b"open sesame").unwrap();
    let (generated, fast) = PasswordHash::generate().unwrap();
    let passwords = format!("passwords = [\"{}\", \"{}\"]", slow.as_str(), fast.as_str());
    let world =
        World::new(&(entry("d", &passwords) + &entry("e", &format!("passwords = \"{}\"", fast.as_str()))));
    assert!(matches!(world.password("d", &generated), Ok(By::Password(_))));
    let first = world.password("d", "open sesame").unwrap();
    assert_eq!(world.password("d", "open sesame"), Ok(first));
    let device = DeviceId::new("d").unwrap();
    let shown = Shown::Password(b"open sesame");
    let attempt = Attempt { protocol: Protocol::Http, peer: AWAY, device: &device, shown, believes: false };
    let begun = Instant::now();
    for _ in 0..1000 {
        let judged = world.gate.judge(&world.gate.registry().snapshot(), attempt);
        assert!(matches!(judged, Judged::Now(Ok(_))), "it is known by now");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for (device, password) in [("d", "open Sesame"), ("e", "open sesame"), ("e", ""), ("x", "open sesame")] {
        let denied = world.password(device, password).unwrap_err();
        assert!(matches!(denied, Denied::Wrong(_) | Denied::Unknown), "{device}: {denied:?}");
        let told = denied.rejection();
        assert_eq!(
            told.description, "the credentials are missing or wrong, or the device is not known",
            "whatever it was"
        );
    }
}

#[test]
fn who_guesses_has_to_wait_and_the_device_has_not() {
    let (password, hash) = PasswordHash::generate().unwrap();
    let world = World::new(&entry("d", &format!("passwords = \"{}\"", hash.as_str())));
    let from = |peer: u8, password: &str| {
        world.judge("d", Shown::Password(password.as_bytes()), [10, 0, 1, peer].into(), false).map(|_| ())
    };
    from(1, &password).unwrap();
    for guess in 0..3 {
        assert_eq!(from(guess + 2, "guess"), Err(Denied::Wrong("the password is wrong")));
    }
    assert!(matches!(from(9, "guess"), Err(Denied::Limited(_))));
    let limited = from(9, &password).unwrap_err();
    let Reason::Quota { retry_after: Some(wait) } = limited.rejection().reason else { panic!("{limited}") };
    assert!(wait <= Duration::from_secs(2), "{wait:?}");
    from(1, &password).expect("where it was before it is known");
    // An address that tries one name after the other.
    for name in 0..20 {
        let denied = world.judge(&format!("x{name}"), Shown::Password(b"x"), [10, 0, 2, 1].into(), false);
        assert_eq!(denied.unwrap_err(), Denied::Unknown);
    }
    let limited = world.judge("d", Shown::Password(password.as_bytes()), [10, 0, 2, 1].into(), false);
    assert!(matches!(limited, Err(Denied::Limited(_))));
}

#[test]
fn a_word_is_believed_where_the_listener_does_and_not_for_those_that_have_a_proof() {
    let world = World::new(
        &(entry("d", &format!("sas_keys = [\"{KEY}\"]"))
            + &entry("free", "unproven = true")
            + &entry("off", "unproven = true\nenabled = false")
            + &entry("none", "")),
    );
    let judge =
        |device, peer, believes| world.judge(device, Shown::Nothing, peer, believes).map(|pass| pass.by);
    assert_eq!(judge("stranger", AWAY, true), Ok(By::Word));
    assert_eq!(judge("stranger", HERE, false), Err(Denied::Unknown));
    assert_eq!(judge("d", HERE, true), Err(Denied::Nothing));
    assert_eq!(judge("none", HERE, true), Err(Denied::Nothing), "an entry without a proof lets nobody in");
    assert_eq!(judge("free", HERE, false), Ok(By::Unproven));
    assert_eq!(judge("free", "::1".parse().unwrap(), false), Ok(By::Unproven));
    assert_eq!(judge("free", AWAY, true), Ok(By::Unproven));
    assert_eq!(judge("free", AWAY, false), Err(Denied::NotHere));
    assert_eq!(judge("off", HERE, true), Err(Denied::Disabled));
}

#[test]
fn a_disabled_device_is_told_so_once_it_has_proved_itself() {
    let (password, hash) = PasswordHash::generate().unwrap();
    let text = format!("enabled = false\npasswords = \"{}\"\nsas_keys = \"{KEY}\"", hash.as_str());
    let world = World::new(&entry("d", &text));
    assert_eq!(world.password("d", &password), Err(Denied::Disabled));
    assert_eq!(world.password("d", &token(KEY, "hub.example/devices/d", 60)), Err(Denied::Disabled));
    assert_eq!(world.password("d", "wrong"), Err(Denied::Wrong("the password is wrong")));
    assert_eq!(Denied::Disabled.rejection().reason, Reason::NotPermitted);
}

#[test]
fn who_may_stay_after_a_change() {
    let keys = |keys: &str| entry("d", &format!("sas_keys = [{keys}]"));
    let world = World::new(&keys(&format!("\"{KEY}\"")));
    let text = token(KEY, "hub.example/devices/d", 60);
    let pass = world.judge("d", Shown::Password(text.as_bytes()), AWAY, false).unwrap();
    let word = world.judge("w", Shown::Nothing, AWAY, true).unwrap();
    assert_eq!((world.still(&pass), world.still(&word)), (Ok(()), Ok(())));
    // Another key beside, another order, other attributes: nothing that matters.
    world.reload(&(keys(&format!("\"{OTHER}\", \"{KEY}\"")) + "attributes = { a = \"b\" }\n"));
    assert_eq!(world.still(&pass), Ok(()));
    world.reload(&(keys(&format!("\"{OTHER}\"")) + &entry("w", "unproven = true")));
    assert_eq!((world.still(&pass), world.still(&word)), (Err(Over::ProofChanged), Ok(())));
    world.reload(
        &(keys(&format!("\"{KEY}\"\n]\nenabled = false\ngroups = ["))
            + &entry("w", &format!("psk = \"{KEY}\""))),
    );
    assert_eq!((world.still(&pass), world.still(&word)), (Err(Over::Disabled), Err(Over::ProofChanged)));
    world.reload("");
    assert_eq!((world.still(&pass), world.still(&word)), (Err(Over::Removed), Ok(())));
    // A bad file changes nothing, and neither does one that is gone.
    world.reload(&keys(&format!("\"{KEY}\"")));
    let generation = world.gate.registry().generation();
    write(&world.path, "[[device]]\nid = 5\n");
    assert!(world.gate.registry().reload().is_err());
    fs::remove_file(&world.path).unwrap();
    assert!(world.gate.registry().reload().unwrap_err().to_string().contains("is gone"));
    assert_eq!((world.still(&pass), world.gate.registry().generation()), (Ok(()), generation));
}

#[test]
fn nothing_that_is_shown_or_told_holds_a_secret() {
    let world = World::new(&entry("d", &format!("sas_keys = \"{KEY}\"\nspeaks_with = \"own-token\"")));
    let text = token(KEY, "hub.example/devices/d", 60);
    let pass = world.judge("d", Shown::Password(text.as_bytes()), AWAY, false).unwrap();
    let device = DeviceId::new("d").unwrap();
    let shown = Shown::Password(text.as_bytes());
    let attempt = Attempt { protocol: Protocol::Amqp, peer: AWAY, device: &device, shown, believes: false };
    let all = format!("{pass:?} {attempt:?} {:?}", world.gate);
    assert!(!all.contains(KEY) && !all.contains("sig="), "{all}");
}

#[test]
fn guesses_at_the_same_time_are_no_more_than_one_after_the_other() {
    let hash = PasswordHash::of_chosen(b"open sesame").unwrap();
    let world = World::new(&entry("d", &format!("passwords = \"{}\"", hash.as_str())));
    let device = DeviceId::new("d").unwrap();
    let devices = world.gate.registry().snapshot();
    let mut guesses = vec![&b"guess"[..]; 7];
    guesses.push(b"open sesame");
    let judged: Vec<_> = guesses
        .into_iter()
        .map(|password| {
            let shown = Shown::Password(password);
            let attempt =
                Attempt { protocol: Protocol::Mqtt, peer: AWAY, device: &device, shown, believes: false };
            world.gate.judge(&devices, attempt)
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answers: Vec<_> = judged.into_iter().map(|judged| runtime.block_on(judged.answer())).collect();
    let wrong = answers.iter().filter(|answer| matches!(answer, Err(Denied::Wrong(_)))).count();
    let limited = answers.iter().filter(|answer| matches!(answer, Err(Denied::Limited(_)))).count();
    assert_eq!((wrong, limited), (3, 5), "{answers:?}");
}

#[test]
fn a_stranger_is_not_told_whether_a_device_is_registered() {
    let (_, hash) = PasswordHash::generate().unwrap();
    let world = World::new(
        &(entry("known", &format!("passwords = \"{}\"", hash.as_str()))
            + &entry("keyed", &format!("sas_keys = \"{KEY}\""))
            + &entry("free", "unproven = true")),
    );
    let told = |device: &str| {
        let mut reasons = Vec::new();
        // As many from one address as to be told to wait because of the device, and not of the address.
        for shown in [Shown::Nothing, Shown::Nothing].into_iter().chain([Shown::Password(b"guess"); 5]) {
            reasons.push(world.judge(device, shown, AWAY, false).unwrap_err().rejection());
        }
        // How long to wait differs by what passed since.
        reasons
            .into_iter()
            .map(|it: Rejection| (matches!(it.reason, Reason::Quota { .. }), it.description))
            .collect::<Vec<_>>()
    };
    let stranger = told("stranger");
    assert!(stranger.last().unwrap().0, "{stranger:?}");
    for device in ["known", "keyed", "free"] {
        assert_eq!(told(device), stranger, "{device}");
    }
}
