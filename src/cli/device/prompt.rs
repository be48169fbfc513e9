//! Asking a person for a secret, without showing it.

use std::io::{self, BufRead as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal as it was, restored in whatever way the question ends.
struct Echo(Termios);

impl Drop for Echo {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing restored.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Asks for a secret, twice, on the terminal.
///
/// # Errors
/// The two differ, or the terminal fails.
pub(super) fn ask(what: &str) -> io::Result<String> {
    let first = once(&format!("{what}: "))?;
    if once(&format!("{what}, again: "))? != first {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the two differ; nothing was changed"));
    }
    Ok(first)
}

fn once(question: &str) -> io::Result<String> {
    let mut error = io::stderr().lock();
    error.write_all(question.as_bytes())?;
    error.flush()?;
    let before = tcgetattr(io::stdin())?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let echo = Echo(before);
    tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    drop(echo);
    error.write_all(b"\n")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
