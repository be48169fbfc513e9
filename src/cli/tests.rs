//! The command line as a person meets it.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Command, String> {
    let arguments = std::iter::once("fieldgate").chain(line.split_whitespace());
    Cli::try_parse_from(arguments).map(|cli| cli.command).map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn without_arguments_there_is_help() {
    let error = Cli::try_parse_from(["fieldgate"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let help = error.to_string();
    for word in ["demo", "run", "hub", "check", "config", "First steps"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn every_help_fits_and_tells_about_each_argument() {
    fn walk(command: &mut clap::Command) {
        let help = command.render_long_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 120, "{}: {line}", command.get_name());
        }
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        for inner in command.get_subcommands_mut() {
            walk(inner);
        }
    }
    let mut command = Cli::command();
    command.build();
    walk(&mut command);
}

#[test]
fn the_state_directory_may_stand_before_and_after_the_command() {
    for line in ["hub --state-dir s watch --json", "hub watch --json --state-dir s"] {
        let Ok(Command::Hub(Hub { place, command: Some(HubCommand::Watch(watch)), .. })) = parse(line) else {
            panic!("{line}");
        };
        assert_eq!(place.state_dir, Some("s".into()));
        assert!(watch.json);
        assert_eq!((watch.from, watch.group.as_str()), (From::Start, "$Default"));
    }
}

#[test]
fn mistakes_are_answered_with_what_is_right() {
    for (line, right) in [
        ("rum", "'run'"),
        ("run --hubb x", "'--hub'"),
        ("hub watch --from noww", "now"),
        ("hub watch --count 0", "0"),
        ("hub token dev --ttl 5", "\"10s\""),
        ("hub send", "<DEVICE>"),
        ("hub send dev text --property x", "NAME=VALUE"),
        ("hub send dev/ice text", "dev/ice"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(right), "{line}: {error}");
    }
}

#[test]
fn frames_are_traced_where_it_is_asked_for() {
    let traced = |line: &str| match parse(line) {
        Ok(Command::Run(run)) => run.trace_frames,
        Ok(Command::Hub(hub)) => hub.trace_frames,
        _ => panic!("{line}"),
    };
    assert_eq!([traced("run --trace-frames"), traced("hub --trace-frames")], [true; 2]);
    assert_eq!([traced("run"), traced("hub")], [false; 2]);
    assert!(Config::parse("f", "[log]\ntrace_frames = true", None).unwrap().log.trace_frames);
    assert!(!Config::default().log.trace_frames);
}

#[test]
fn a_file_of_qpid_dispatch_is_imported() {
    let Ok(Command::Import(import)) = parse("import qdrouterd.conf -o f.toml") else { panic!() };
    assert_eq!((import.file, import.output), ("qdrouterd.conf".into(), Some("f.toml".into())));
    assert!(parse("import").unwrap_err().contains("<FILE>"));
}

#[test]
fn arguments_go_before_the_file_and_the_defaults() {
    let Ok(Command::Run(run)) = parse("run --hub amqps://h --state-dir s") else { panic!() };
    assert_eq!(run.hub.as_deref(), Some("amqps://h"));
    assert_eq!(run.place.config().unwrap().state.directory, Some("s".into()));
    assert!(
        parse("run --config /nowhere.toml")
            .is_ok_and(|command| matches!(command, Command::Run(run) if run.place.config().is_err()))
    );
}
