//! The configuration as a person meets it: what is accepted, and what the errors say.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;
use crate::state::tests::Scratch;

mod links;
mod ways;

const POLICY: &str =
    "HostName=hub.example;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0LXNlY3JldA==";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("f.toml", text, None)
}

#[track_caller]
fn refused(text: &str) -> String {
    parse(text).expect_err("must be refused").to_string()
}

#[test]
fn no_text_and_the_sample_both_mean_the_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse(sample()).unwrap(), Config::default());
}

#[test]
fn what_the_sample_leaves_out_is_known() {
    // `# key = value`: a setting without a default. Those that exclude each other, or need a file, are tested apart.
    let apart = [
        "connection_string",
        "connection_string_file",
        "url",
        "ssl_profile",
        "sasl_mechanisms",
        "sasl_username",
        "sasl_password_file",
        "sasl_password",
        "websocket_path",
        "websocket_protocol",
        "proxy_password_file",
    ];
    let text: String = sample()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting)
                if setting.split(' ').nth(1) == Some("=")
                    && !apart.contains(&setting.split(' ').next().unwrap_or_default()) =>
            {
                format!("{setting}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(text.trim(), sample().trim());
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.listeners[0].authorise, Authorise::Token);
    assert_eq!(config.log.modules["fieldgate::hub"], Level::Debug);
}

#[test]
fn the_sample_shows_every_key() {
    for section in [
        "log", "runtime", "state", "amqp", "mqtt", "coap", "http", "devices", "admin", "hub", "upstream",
        "mappings", "spool",
    ] {
        let part = sample().split(&format!("\n[{section}]")).nth(1).unwrap();
        shows_every_key(part.split("\n[").next().unwrap(), section, &format!("[{section}]"));
    }
    for section in ["ssl_profile", "listener", "connector", "link_route"] {
        let part = sample().split(&format!("\n#[[{section}]]")).nth(1).unwrap();
        shows_every_key(part.split("\n#[").next().unwrap(), section, &format!("[[{section}]]"));
    }
}

fn shows_every_key(part: &str, section: &str, header: &str) {
    let error = parse(&format!("{header}\nno_such_key = 1")).unwrap_err();
    assert!(error.what.contains(&format!("in [{section}]")), "{error}");
    let keys: Vec<_> = error.help.as_ref().unwrap().split('`').skip(1).step_by(2).collect();
    for key in keys.iter().filter(|key| **key != "modules") {
        let shown = |line: &str| line.trim_start_matches('#').trim_start().starts_with(&format!("{key} ="));
        assert!(part.lines().any(shown), "{section}.{key}");
    }
}

#[test]
fn the_arrays_of_the_sample_are_known_and_show_their_defaults() {
    // `#key = value`: what an array shows. Some exclude each other, or need a file.
    let needy = ["websocket_path", "websocket_protocol", "proxy_password_file"];
    let apart =
        [&needy[..], &["sasl_password_file", "pattern", "client_certificates", "max_messages_per_second"]]
            .concat();
    let with = |apart: &[&str]| -> String {
        sample()
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .filter(|line| !apart.iter().any(|key| line.starts_with(&format!("{key} ="))))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
            .replacen("\nname", "\nclient_certificates = \"optional\"\nname", 1)
    };
    let config = parse(&with(&apart)).unwrap_or_else(|error| panic!("{error}"));
    let shown = &config.connectors[0];
    let bare = "[[connector]]\nname = \"hub-berlin\"\nhost = \"127.0.0.1\"";
    let default = parse(bare).unwrap().connectors.remove(0);
    assert_eq!(Connector { reach: shown.reach.clone(), ..default }, *shown);
    let bare = "[[listener]]\nname = \"floor\"";
    let default = parse(bare).unwrap().listeners.remove(0);
    assert_eq!(default.limits, config.listeners[0].limits);
    assert_eq!(default.limits, Config::default().listeners[0].limits);
    let own = [&needy[..], &["pattern", "sasl_password", "client_certificates"]].concat();
    let own = parse(&with(&own)).unwrap_err().to_string();
    assert!(own.contains("password cannot be read"), "{own}");
}

#[test]
fn an_unknown_key_names_the_nearest_and_its_place() {
    assert_eq!(
        refused("[mqtt]\nlisten = []\npublish_windo = 3\n"),
        "f.toml:3:1: unknown key `publish_windo` in [mqtt]\n  3 | publish_windo = 3\n    | ^^^^^^^^^^^^^\n  help: did you mean \
         `publish_window`? possible are `listen`, `allow_anonymous`, `max_connections`, `max_packet_bytes`, \
         `publish_window`, `command_window`, `max_subscriptions`, `session_expiry_max`, `max_sessions`, `keep_alive_max`, `connect_time_out`"
    );
    let section = refused("[log]\n[mqqt]\n");
    assert!(section.starts_with("f.toml:2:2: unknown section `mqqt`\n"), "{section}");
    assert!(section.contains("did you mean `mqtt`?"), "{section}");
    let stray = refused("listen = []\n");
    assert!(stray.contains("unknown key `listen` outside of any section"), "{stray}");
    let value = refused("[log]\nlevel = \"inf\"");
    assert!(value.starts_with("f.toml:2:9: unknown value `inf`\n"), "{value}");
    assert!(value.contains("did you mean `info`?"), "{value}");
}

#[test]
fn a_value_of_the_wrong_kind_says_what_kind_is_right() {
    for (text, place, right) in [
        ("[mqtt]\nlisten = [\"[::1]:1883\", \"localhost:1883\"]", "2:25", "\"127.0.0.1:1883\""),
        ("[mqtt]\nlisten = 1883", "2:10", "a list of addresses"),
        ("[admin]\nlisten = \":9464\"", "2:10", "\"127.0.0.1:9464\""),
        ("[runtime]\ndrain = 10", "2:9", "\"10s\""),
        ("[runtime]\ndrain = \"10 apples\"", "2:9", "\"10s\""),
        ("[amqp]\nmax_frame_bytes = \"64kb\"", "2:19", "\"256KiB\""),
        ("[amqp]\nmax_frame_bytes = \"8GiB\"", "2:19", "more than this setting can hold"),
        ("[amqp]\nmax_frame_bytes = -1", "2:19", "a size in bytes"),
        ("[amqp]\nmax_frame_bytes = 511", "2:19", "from 512 to"),
        ("[amqp]\nmax_links = 0", "2:13", "a whole number from 1 to 4294967295"),
        ("[mqtt]\nmax_subscriptions = 0", "2:21", "a whole number from 1 on"),
        ("[mqtt]\npublish_window = 70000", "2:18", "a whole number from 1 to 65535"),
        ("[runtime]\nworkers = -1", "2:11", "a whole number from 0 on"),
        ("[log]\nlevel = 3", "2:9", "a word in quotes"),
        ("[mqtt]\nallow_anonymous = \"yes\"", "2:19", "expected a boolean"),
        ("[upstream]\ntoken_ttl = \"9s\"", "2:13", "from 10s to"),
        ("mqtt = 3", "1:8", "a section with keys"),
        ("[mqtt]\nkeep_alive_max = \"1d\"", "2:18", "to 65535s"),
        ("[hub]\nname = \"my hub\"", "2:8", "letters, digits"),
        ("[hub]\nname = [", "2:", "array"),
        ("[hub\n", "1:", "`]`"),
        ("[hub]\nlock = \"1m\"\nlock = \"2m\"", "3:1", "duplicate key"),
    ] {
        let error = refused(text);
        assert!(error.starts_with(&format!("f.toml:{place}")), "{error}");
        assert!(error.contains(right), "{right}: {error}");
    }
}

#[test]
fn off_loopback_anonymous_access_must_stand_there_in_words() {
    for section in ["amqp", "mqtt", "coap", "http"] {
        let error = refused(&format!("[{section}]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:2\"]"));
        assert!(error.starts_with(&format!("f.toml:2:26: [{section}] listens on 0.0.0.0:2")), "{error}");
        assert!(error.contains(&format!("`allow_anonymous = true` under [{section}]")), "{error}");
        // AMQP has a word of its own for who is asked.
        let proven = if section == "amqp" { "authorise = \"registry\"" } else { "allow_anonymous = false" };
        assert!(parse(&format!("[{section}]\nlisten = \"0.0.0.0:2\"\n{proven}")).is_ok());
        assert!(parse(&format!("[{section}]\nlisten = \"0.0.0.0:2\"\nallow_anonymous = true")).is_ok());
        assert!(parse(&format!("[{section}]\nlisten = \"[::1]:2\"")).is_ok());
    }
    assert!(refused("[admin]\nlisten = \"0.0.0.0:9464\"").contains("[admin] listens on 0.0.0.0:9464"));
    assert!(
        refused("[hub]\nlisten = \"[::]:5671\"\nregister_unknown_devices = true")
            .starts_with("f.toml:3:28: [hub]")
    );
}

#[test]
fn who_is_let_in() {
    let config = Config::default();
    assert!(config.mqtt.allow_anonymous() && config.coap.allow_anonymous() && config.http.allow_anonymous());
    assert_eq!(config.listeners[0].authorise, Authorise::Any);
    assert!(config.hub.register_unknown_devices());

    let token = parse("[amqp]\nlisten = \"0.0.0.0:1\"\nauthorise = \"token\"").unwrap();
    assert_eq!(token.listeners[0].authorise, Authorise::Token);
    let any = parse("[amqp]\nlisten = \"0.0.0.0:1\"\nallow_anonymous = true").unwrap();
    assert_eq!(any.listeners[0].authorise, Authorise::Any);
    let strict = parse("[amqp]\nallow_anonymous = false\n[mqtt]\nallow_anonymous = false").unwrap();
    assert_eq!((strict.listeners[0].authorise, strict.mqtt.allow_anonymous()), (Authorise::Token, false));
    let registry = parse("[amqp]\nlisten = \"0.0.0.0:1\"\nauthorise = \"registry\"").unwrap();
    assert_eq!(registry.listeners[0].authorise, Authorise::Registry);
    assert!(registry.listeners[0].sasl_mechanisms.contains(&fieldgate_amqp::sasl::Mechanism::Plain));
    let nobody = refused("[amqp]\nauthorise = \"registry\"\nallow_anonymous = true");
    assert!(nobody.contains("keep one of the two"), "{nobody}");
    let each = refused("[[listener]]\nauthorise = \"registry\"\n[upstream]\nmode = \"per-connection\"");
    assert!(each.starts_with("f.toml:2:13: ") && each.contains("mode = \"shared\""), "{each}");
    let both = refused("[amqp]\nauthorise = \"any\"\nallow_anonymous = false");
    assert!(both.starts_with("f.toml:2:13: ") && both.contains("keep one"), "{both}");
    assert!(!parse("[hub]\nlisten = \"0.0.0.0:5671\"").unwrap().hub.register_unknown_devices());
}

#[test]
fn the_hub_is_the_embedded_one_until_another_is_named() {
    let config = Config::default();
    assert_eq!(config.upstream.target, Target::Embedded);
    assert!(config.runs_hub() && config.require_hub().is_ok());

    let cloud = parse(&format!("[upstream]\nconnection_string = \"{POLICY}\"")).unwrap();
    assert!(!cloud.runs_hub() && cloud.require_hub().is_ok());
    let both = parse("[hub]\nenabled = true\n[upstream]\nurl = \"amqps://h\"").unwrap();
    assert!(both.runs_hub());

    let mut none = parse("[hub]\nenabled = false").unwrap();
    assert!(none.require_hub().unwrap_err().to_string().contains("--hub"));
    none.set_hub("--hub", "amqps://user:pass=word@hub.example:99").unwrap();
    assert!(none.require_hub().is_ok());
    let deaf = parse("[hub]\nlisten = []").unwrap().require_hub().unwrap_err().to_string();
    assert!(deaf.contains("[hub] listen"), "{deaf}");

    let two = refused("[upstream]\nurl = \"amqps://h\"\nconnection_string = \"x\"");
    assert!(two.contains("more than one hub"), "{two}");
}

#[test]
fn a_connection_string_must_be_a_policy_s() {
    let mut config = Config::default();
    config.set_hub("--hub", POLICY).unwrap();
    assert!(
        matches!(&config.upstream.target, Target::ConnectionString(parsed) if parsed.host == "hub.example")
    );
    for (wrong, say) in [
        ("HostName=h;DeviceId=pump;SharedAccessKey=c2VjcmV0", "the one device `pump`"),
        ("HostName=h;SharedAccessKey=c2VjcmV0", "SharedAccessKeyName"),
        ("HostName=h;SharedAccessKeyName=n;SharedAccessKey=*hidden*", "base64"),
        ("Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=c2VjcmV0;EntityPath=e", "Event Hub"),
        ("hub.example", "neither a connection string nor a URL"),
        ("HostName=h;what", "equals sign"),
        ("amqp://user:hidden@hub", "TLS only"),
    ] {
        let error = config.set_hub("--hub", wrong).unwrap_err().to_string();
        assert!(error.starts_with("--hub: ") && error.contains(say), "{error}");
        assert!(!error.contains("hidden") && !error.contains("c2Vj"), "{error}");
    }
}

#[test]
fn secrets_stay_out_of_sight() {
    let text = format!("[upstream]\nconnection_string = \"{POLICY}\"");
    assert!(!format!("{:?}", parse(&text).unwrap()).contains("c2Vj"));
    let text = "[upstream]\nurl = \"amqps://u:hidden@h/path\"";
    let error = refused(text);
    assert!(error.starts_with("f.toml:2:7: "), "{error}");
    assert!(!error.contains("hidden"), "{error}");
    for text in [
        "[upstream]\nconnection_string = \"HostName=h;SharedAccessKey=hidden",
        "[upstream]\nconection = \"HostName=h;SharedAccessKey=hidden\"",
        "[upstream]\nurl = 'amqps://u:hidden@h' 'oh'",
    ] {
        let error = refused(text);
        assert!(error.starts_with("f.toml:2:") && !error.contains("hidden"), "{error}");
    }
}

#[test]
fn files_with_secrets_are_their_user_s_own() {
    let scratch = Scratch::new();
    let write = |name: &str, text: &str, mode: u32| -> PathBuf {
        let path = scratch.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let beside = write("f.toml", "[upstream]\nconnection_string_file = \"hub.secret\"", 0o644);
    let missing = Config::load(&beside).unwrap_err().to_string();
    assert!(missing.contains(":2:26: ") && missing.contains("hub.secret cannot be read"), "{missing}");
    write("hub.secret", POLICY, 0o644);
    let open = Config::load(&beside).unwrap_err().to_string();
    assert!(open.contains("chmod 600") && open.contains("hub.secret"), "{open}");
    write("hub.secret", &format!("{POLICY}\n"), 0o600);
    assert!(matches!(Config::load(&beside).unwrap().upstream.target, Target::ConnectionString(_)));

    let inside = write("g.toml", &format!("[upstream]\nconnection_string = \"{POLICY}\""), 0o644);
    assert!(Config::load(&inside).unwrap_err().to_string().contains("g.toml: holds a key"));
    write("g.toml", &fs::read_to_string(&inside).unwrap(), 0o640);
    Config::load(&inside).unwrap();
}

#[test]
fn paths_are_seen_from_the_file() {
    let text = "[state]\ndirectory = \"s\"\n[mappings]\nfiles = [\"m.toml\", \"/abs.toml\"]\n[upstream]\nca_file = \"ca.pem\"";
    let config = Config::parse("f.toml", text, Some(Path::new("/etc/fieldgate"))).unwrap();
    assert_eq!(config.state.directory, Some("/etc/fieldgate/s".into()));
    assert_eq!(config.mappings.files, [PathBuf::from("/etc/fieldgate/m.toml"), "/abs.toml".into()]);
    assert_eq!(config.upstream.access.tls.ca_cert_file, Some("/etc/fieldgate/ca.pem".into()));
}

#[test]
fn a_file_that_is_not_there_says_how_to_get_one() {
    let error = Config::load(Path::new("/nowhere/f.toml")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/f.toml: cannot be read") && error.contains("config sample"), "{error}");
}
