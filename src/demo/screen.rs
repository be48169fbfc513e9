//! The lines that the demo shows: when, who, which device, by which protocol, what.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::fleet::{PROTOCOLS, label, plan};
use super::note::{News, Note};
use crate::output::{harmless, say};
use crate::service::Event;

/// What one line shows of a text that comes from outside.
const MAX_CHARS: usize = 400;

/// Whose view a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// A simulated device.
    Device,
    /// The hub's event log.
    Hub,
    /// The service that sends commands.
    Sender,
}

impl Who {
    /// The name, and the colour (ECMA-48 SGR).
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Self::Device => ("device", "36"),
            Self::Hub => ("hub", "32"),
            Self::Sender => ("sender", "33"),
        }
    }
}

/// A line before it is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    who: Who,
    device: String,
    by: &'static str,
    what: String,
}

impl Line {
    /// The line for what a part of the demo tells.
    pub(super) fn of_note(note: &Note) -> Self {
        let (who, what) = match &note.news {
            News::Accepted { bytes, took, reply } => {
                (Who::Device, format!("sent {bytes} bytes; accepted after {} ({reply})", shown(*took)))
            }
            News::Refused { reply } => (Who::Device, format!("REFUSED: {reply}")),
            News::Command { text, reply } => {
                (Who::Device, format!("command \"{text}\" received, accepted ({reply})"))
            }
            News::Trouble { what, again_in } => {
                (Who::Device, format!("DISCONNECTED: {what}; again in {}", shown(*again_in)))
            }
            News::CommandSent { text } => (Who::Sender, format!("command \"{text}\" sent to the hub")),
            News::CommandAnswered { status, took, .. } => {
                (Who::Sender, format!("feedback {status}, {} after the command", shown(*took)))
            }
            News::CommandFailed { why } => (Who::Sender, format!("COMMAND FAILED: {why}")),
        };
        Self { who, device: note.plan.id.into(), by: note.plan.speaks.label(), what }
    }

    /// The line for what the hub received.
    pub(super) fn of_event(event: &Event) -> Self {
        let device = event.device().unwrap_or("(no device)");
        Self { who: Who::Hub, device: device.into(), by: protocol(device), what: event.content() }
    }

    fn lay_out(&self, since_start: Duration, colours: bool) -> String {
        let (who, colour) = self.who.shown();
        let (on, off) = if colours { (format!("\x1b[{colour}m"), "\x1b[0m") } else { Default::default() };
        let seconds = since_start.as_secs_f64();
        let device = harmless(&self.device);
        let mut what: String = harmless(&self.what).chars().take(MAX_CHARS + 1).collect();
        if what.chars().count() > MAX_CHARS {
            what.pop();
            what.push('…');
        }
        format!("{seconds:>8.3}  {on}{who:<7}{off}{device:<12} {:<11}{what}", self.by)
    }
}

/// The protocol that a device speaks, as its name tells: the hub itself neither knows nor cares.
fn protocol(device: &str) -> &'static str {
    if let Some(plan) = plan(device) {
        return plan.speaks.label();
    }
    let named =
        |word: &str| PROTOCOLS.into_iter().find(|protocol| word.eq_ignore_ascii_case(protocol.name()));
    device.split(['-', '_', '.']).find_map(named).map_or("?", label)
}

/// A duration with the digits that somebody looks at.
fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.1 { format!("{:.1} ms", seconds * 1_000.0) } else { format!("{seconds:.1} s") }
}

/// The heading over the lines.
pub(super) const HEADING: &str = " seconds  who    device       protocol   what";

/// Standard output, with or without colours.
#[derive(Debug)]
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    /// Colours go to a terminal only, and to nobody who declines them (<https://no-color.org>).
    pub(super) fn new() -> Self {
        let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { colours: io::stdout().is_terminal() && !declined }
    }

    /// Shows a line.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(super) fn show(&self, since_start: Duration, line: &Line) -> io::Result<()> {
        say(&line.lay_out(since_start, self.colours))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::FLEET;
    use super::*;

    const AT: Duration = Duration::from_millis(12_345);

    fn line(id: &str, news: News) -> String {
        Line::of_note(&Note { plan: plan(id).unwrap(), news }).lay_out(AT, false)
    }

    #[test]
    fn lines_stand_in_the_columns_of_the_heading() {
        let took = Duration::from_micros(2_940);
        let accepted = line("mqtt-boiler", News::Accepted { bytes: 41, took, reply: "PUBACK".into() });
        assert_eq!(
            accepted,
            "  12.345  device mqtt-boiler  MQTT 3.1.1 sent 41 bytes; accepted after 2.9 ms (PUBACK)"
        );
        for (word, text) in
            [("who", "device"), ("device", "mqtt-boiler"), ("protocol", "MQTT"), ("what", "sent")]
        {
            assert_eq!(HEADING.find(word), accepted.find(text), "{word}");
        }
        let command = line("amqp-press", News::CommandSent { text: "pressure 175 bar".into() });
        assert_eq!(
            command,
            "  12.345  sender amqp-press   AMQP 1.0   command \"pressure 175 bar\" sent to the hub"
        );
    }

    #[test]
    fn usual_lines_fit_into_a_hundred_columns() {
        let took = Duration::from_millis(250);
        for plan in &FLEET {
            let longest = "204 No Content".to_owned();
            let text = plan.command.map_or_else(String::new, |command| command(3));
            let bytes = plan.reading(1).len();
            for news in [
                News::Accepted { bytes, took, reply: longest },
                News::CommandSent { text: text.clone() },
                News::Command { text, reply: "disposition" },
                News::CommandAnswered { status: "Success".into(), is_taken: true, took },
            ] {
                let line = line(plan.id, news);
                assert!(line.chars().count() <= 100, "{line}");
            }
            let (name, value) = plan.property;
            let content = format!("{}   {name}={value}", plan.reading(1));
            assert!(content.len() <= 100 - HEADING.find("what").unwrap(), "{content}");
        }
    }

    #[test]
    fn what_comes_from_outside_is_harmless_and_has_an_end() {
        let text = line("mqtt-valve", News::Refused { reply: format!("\x1b[2J{}", "x".repeat(10_000)) });
        assert!(text.contains("\\u{1b}[2J") && text.ends_with("x…"), "{text}");
        assert!(text.chars().count() < MAX_CHARS + 100);
    }

    #[test]
    fn the_protocol_of_a_stranger_is_read_from_its_name() {
        assert_eq!(protocol("my-mqtt"), "MQTT");
        assert_eq!(protocol("CoAP_3"), "CoAP");
        assert_eq!(protocol("mqttish"), "?");
        assert_eq!(protocol("coap-rain"), "CoAP NON");
    }

    #[test]
    fn colours_change_nothing_else() {
        let line = Line::of_note(&Note { plan: &FLEET[0], news: News::Refused { reply: "no".into() } });
        let coloured = line.lay_out(AT, true);
        assert_eq!(coloured.replace("\x1b[36m", "").replace("\x1b[0m", ""), line.lay_out(AT, false));
    }
}
