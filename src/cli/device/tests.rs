//! The registry's commands as a person uses them; the binary's own test runs them as processes.

use std::fs;

use super::*;
use crate::cli::{Cli, Command};
use crate::state::tests::Scratch;
use clap::Parser as _;

struct Bench(Scratch);

impl Bench {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn run(&self, line: &str) -> Result<(), String> {
        let state = self.0.0.join("state");
        let arguments = ["fieldgate", "device"].into_iter().chain(line.split_whitespace());
        let arguments = arguments.map(Into::into).chain(["--state-dir".into(), state.into_os_string()]);
        let Command::Device { place, command } =
            Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.command
        else {
            panic!("{line}");
        };
        run(&place, command).map_err(|error| error.to_string())
    }

    fn file(&self) -> String {
        fs::read_to_string(self.0.0.join("state/devices.toml")).unwrap()
    }

    fn device(&self, id: &str) -> Device {
        let book = Book::open(
            &self.0.0.join("state/devices.toml"),
            Known { hubs: vec!["upstream".into()], spools: None },
        )
        .unwrap();
        book.devices().get(id).unwrap().clone()
    }
}

#[test]
fn a_device_lives() {
    let bench = Bench::new();
    bench.run("add pump-1 --hub upstream --attribute site=berlin --via line --disabled").unwrap();
    bench.run("add gw --unproven --group line").unwrap();
    bench.run("add p --password --certificate CN=p --json").unwrap();
    let pump = bench.device("pump-1");
    assert_eq!(
        (kinds(&pump), pump.enabled, pump.attribute("site")),
        ("sas-key".into(), false, Some("berlin"))
    );
    bench.run("enable pump-1 p").unwrap();
    assert!(bench.device("pump-1").enabled && bench.device("pump-1").lets_act(&bench.device("gw"), "line"));
    // One key in use, one to come.
    let first = bench.device("pump-1").proofs[0].clone();
    bench.run("rotate pump-1").unwrap();
    let two = bench.device("pump-1").proofs;
    assert_eq!((two.len(), &two[1]), (2, &first));
    bench.run("rotate pump-1").unwrap();
    let three = bench.device("pump-1").proofs;
    assert_eq!((three.len(), &three[1]), (2, &two[0]));
    bench.run("rotate pump-1 --drop-old").unwrap();
    assert_eq!(bench.device("pump-1").proofs, three[..1].into());
    bench.run("rotate pump-1 --sas-key --drop-old").unwrap();
    assert!(bench.device("pump-1").proofs.len() == 1 && bench.device("pump-1").proofs[0] != three[0]);
    bench.run("rotate p").unwrap();
    assert_eq!(kinds(&bench.device("p")), "2 password, certificate-name");
    for line in ["list", "list --json", "show pump-1", "show p --json", "disable gw"] {
        bench.run(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    bench.run("remove pump-1 gw p").unwrap();
    assert_eq!(bench.file().trim(), "version = 1");
    bench.run("list").unwrap();
}

#[test]
fn secrets_come_from_files_and_only_a_hash_of_a_password_stays() {
    let bench = Bench::new();
    let (password, key) = (bench.0.0.join("password"), bench.0.0.join("key"));
    fs::write(&password, "open sesame\n").unwrap();
    fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n").unwrap();
    let (password, key) = (password.display(), key.display());
    bench
        .run(&format!("add a --password-file {password} --sas-key-file {key} --hub-key-file {key}"))
        .unwrap();
    assert!(!bench.file().contains("sesame"));
    let device = bench.device("a");
    let Proof::Password(hash) = &device.proofs[1] else { panic!("{device:?}") };
    assert!(hash.is_slow() && hash.verify(b"open sesame"));
    let told = format!("{} {}", shown(&device), device.proofs.iter().map(proof_line).collect::<String>());
    assert!(!told.contains("MDEy") && !told.contains("argon2"), "{told}");
    assert!(bench.run(&format!("add b --sas-key-file {password}")).unwrap_err().contains("base64"));
    assert!(bench.run("add b --password-file /nowhere").unwrap_err().contains("cannot be read"));
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let bench = Bench::new();
    bench.run("add pump-1").unwrap();
    let before = bench.file();
    for (line, right) in [
        ("add pump-1", "registered already, in line 3"),
        ("add a/b", "which the hub's identifiers do not allow"),
        ("add b --hub upstraem", "did you mean `upstream`?"),
        ("add b --certificate pump", "\"CN=pump-1\""),
        ("add b --unproven --sas-key", "cannot be used with"),
        ("add b --speaks-with key", "possible values: own-token, device-key, policy"),
        ("add b --password --speaks-with device-key", "has none"),
        ("disable pump-1 pump-2", "did you mean `pump-1`?"),
        ("show pump", "is not registered"),
        ("rotate pumpp-1", "did you mean `pump-1`?"),
        ("remove", "required"),
    ] {
        let error = bench.run(line).unwrap_err();
        assert!(error.contains(right), "{line}: {error}");
    }
    assert_eq!(bench.file(), before);
    bench.run("add c --certificate CN=c").unwrap();
    assert!(bench.run("rotate c").unwrap_err().contains("neither key nor password"));
}
