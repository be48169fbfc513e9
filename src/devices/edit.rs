//! Changing the registry's file: an entry at a time, and nothing else of what stands there. Comments, order and blank
//! lines stay as somebody wrote them; a whole new file takes the old one's place at once, and only a good one does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldgate_mappings::DeviceId;
use toml::de::{DeTable, DeValue};

use crate::config::{ConfigError, nearest};

use super::file::{self, Entries, Known};
use super::{Device, Devices};

/// The file, held by this process until this value is dropped.
#[derive(Debug)]
pub(crate) struct Book {
    path: PathBuf,
    name: String,
    text: String,
    known: Known,
    devices: Arc<Devices>,
    // Closing the file gives the lock back.
    _lock: File,
}

impl Book {
    /// Opens the file, or begins one; waits for another process that changes it.
    ///
    /// # Errors
    /// It cannot be read or written beside, or it is not good.
    pub(crate) fn open(path: &Path, known: Known) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let lock = lock(path).map_err(|error| unwritable(&name, &error))?;
        let text = file::read(path, &name)?.unwrap_or_default();
        let (known, devices) = match file::parse(&name, &text, &known) {
            Ok(devices) => (known, devices),
            // That the file and the mapping rules do not go together must not keep anybody from mending it here.
            Err(_) => {
                let known = known.without_spool();
                let devices = file::parse(&name, &text, &known)?;
                (known, devices)
            }
        };
        let devices = Arc::new(devices);
        Ok(Self { path: path.into(), name, text, known, devices, _lock: lock })
    }

    /// The devices, as the file was opened or saved last.
    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The device of this id.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find(&self, id: &DeviceId) -> Result<&Device, ConfigError> {
        self.devices.get(id.as_str()).ok_or_else(|| self.unknown(id))
    }

    fn unknown(&self, id: &DeviceId) -> ConfigError {
        let near = nearest(id.as_str(), self.devices.iter().map(|device| device.id.as_str()));
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`fieldgate device list` shows those that are".into(),
        };
        ConfigError::new(&self.name, format!("{id} is not registered")).with_help(help)
    }

    /// Adds an entry at the end; `lines` are its keys, without the id.
    ///
    /// # Errors
    /// The device has an entry.
    pub(crate) fn add(&mut self, id: &DeviceId, lines: &[(&str, String)]) -> Result<(), ConfigError> {
        if let Some(device) = self.devices.get(id.as_str()) {
            let what = format!("{id} is registered already, in line {}", device.line);
            return Err(ConfigError::new(&self.name, what).with_help(format!(
                "`fieldgate device show {id}`; `rotate` for another key, `remove` to begin anew"
            )));
        }
        if self.text.is_empty() {
            self.text.push_str("version = 1\n");
        }
        if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.text.push_str(&format!("\n[[device]]\nid = {}\n", quoted(id.as_str())));
        for (key, value) in lines {
            self.text.push_str(&format!("{key} = {value}\n"));
        }
        Ok(())
    }

    /// Takes an entry away, with the comments in it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn remove(&mut self, id: &DeviceId) -> Result<(), ConfigError> {
        let mut range = self.entry(id)?;
        // What stands behind a blank line at its end belongs to the next one.
        let piece = &self.text[range.clone()];
        let mut kept = 0;
        for line in piece.lines().rev().take_while(|line| line.trim_start().starts_with('#')) {
            kept += line.len() + 1;
        }
        let ahead = piece.len().saturating_sub(kept);
        if kept > 0 && piece[..ahead].ends_with("\n\n") {
            range.end -= kept;
        }
        self.text.replace_range(range, "");
        Ok(())
    }

    /// Sets a key of an entry.
    ///
    /// # Errors
    /// There is no such entry, or no way to find the key in it.
    pub(crate) fn set(&mut self, id: &DeviceId, key: &str, value: &str) -> Result<(), ConfigError> {
        let entry = self.entry(id)?;
        let piece = &self.text[entry.clone()];
        let change = match find(piece, key).ok_or_else(|| self.odd(id))? {
            Found::Value(span) => (span, value.to_owned()),
            Found::After(id) => {
                let end = piece[id..].find('\n').map(|at| id + at);
                (end.unwrap_or(piece.len())..end.unwrap_or(piece.len()), format!("\n{key} = {value}"))
            }
        };
        let (span, text) = change;
        self.text.replace_range(entry.start + span.start..entry.start + span.end, &text);
        Ok(())
    }

    /// Writes the file anew, if it is good.
    ///
    /// # Errors
    /// It would not be good, or the system refuses.
    pub(crate) fn save(&mut self) -> Result<(), ConfigError> {
        let devices = file::parse(&self.name, &self.text, &self.known)?;
        self.write().map_err(|error| unwritable(&self.name, &error))?;
        self.devices = Arc::new(devices);
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        let new = beside(&self.path, "new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let old = fs::metadata(&self.path).ok();
        // Root may write the file of a service, which is to read it: one that is new is its directory's owner's.
        let owner = match &old {
            Some(old) => old.clone(),
            None => fs::metadata(directory(&self.path))?,
        };
        let now = file.metadata()?;
        let differs = (owner.uid(), owner.gid()) != (now.uid(), now.gid());
        if differs && (old.is_some() || now.uid() == 0) {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        if let Some(old) = old {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(self.text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(directory(&self.path))?.sync_all()
    }

    /// Where the device's entry stands.
    fn entry(&self, id: &DeviceId) -> Result<Range<usize>, ConfigError> {
        let device = self.find(id)?;
        // After a change of another entry the line is not where it was; the id is.
        let pieces = Entries::of(&self.text);
        let piece = pieces.iter().find(|piece| id_of(piece.text).as_deref() == Some(device.id.as_str()));
        let piece = piece.ok_or_else(|| self.odd(id))?;
        Ok(piece.offset..piece.offset + piece.text.len())
    }

    fn odd(&self, id: &DeviceId) -> ConfigError {
        ConfigError::new(
            &self.name,
            format!("the entry of {id} is written in a way that cannot be changed here"),
        )
        .with_help("change it by hand")
    }
}

/// Where a key's value stands in an entry, or behind what it may be written.
enum Found {
    Value(Range<usize>),
    /// The end of the id.
    After(usize),
}

fn find(piece: &str, key: &str) -> Option<Found> {
    let root = DeTable::parse(piece).ok()?;
    let DeValue::Array(list) = root.get_ref().get("device")?.get_ref() else { return None };
    let DeValue::Table(entry) = list.first()?.get_ref() else { return None };
    match entry.get(key) {
        Some(value) => Some(Found::Value(value.span())),
        None => Some(Found::After(entry.get("id")?.span().end)),
    }
}

fn id_of(piece: &str) -> Option<String> {
    let root = DeTable::parse(piece).ok()?;
    let DeValue::Array(list) = root.get_ref().get("device")?.get_ref() else { return None };
    let DeValue::Table(entry) = list.first()?.get_ref() else { return None };
    Some(entry.get("id")?.get_ref().as_str()?.to_owned())
}

/// A text as TOML has it.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

/// Several texts as TOML has them.
pub(crate) fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(quoted).collect();
    format!("[{}]", texts.join(", "))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Keeps other processes from changing the file. It is the directory that is locked: a file for it would belong to
/// whoever came first, and keep the others out.
fn lock(path: &Path) -> io::Result<File> {
    let directory = File::open(directory(path))?;
    directory.lock()?;
    Ok(directory)
}

fn unwritable(name: &str, error: &io::Error) -> ConfigError {
    let refused = ConfigError::new(name, format!("cannot be written: {error}"));
    match error.kind() {
        io::ErrorKind::NotFound => {
            refused.with_help("the directory is to be there, for the gateway's user only")
        }
        io::ErrorKind::PermissionDenied => refused.with_help("run this as the gateway's user, or as root"),
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::state::tests::Scratch;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn id(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    fn book(scratch: &Scratch) -> Book {
        let known = Known { hubs: vec!["upstream".into()], spools: None };
        Book::open(&scratch.0.join("devices.toml"), known).unwrap_or_else(|error| panic!("{error}"))
    }

    fn text(scratch: &Scratch) -> String {
        fs::read_to_string(scratch.0.join("devices.toml")).unwrap()
    }

    fn write(scratch: &Scratch, text: &str, mode: u32) {
        let path = scratch.0.join("devices.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_file_is_its_users_own() {
        let scratch = Scratch::new();
        let mut book = book(&scratch);
        book.add(&id("pump-1"), &[("sas_keys", list([KEY])), ("hub", quoted("upstream"))]).unwrap();
        book.save().unwrap();
        assert_eq!(book.devices().get("pump-1").unwrap().proofs.len(), 1);
        let expected = format!(
            "version = 1\n\n[[device]]\nid = \"pump-1\"\nsas_keys = [\"{KEY}\"]\nhub = \"upstream\"\n"
        );
        assert_eq!(text(&scratch), expected);
        let mode = fs::metadata(scratch.0.join("devices.toml")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_new_file_that_root_writes_is_for_the_service_whose_directory_it_is() {
        // Nobody else can do that.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let scratch = Scratch::new();
        std::os::unix::fs::chown(&scratch.0, Some(12_345), Some(12_346)).unwrap();
        let mut book = book(&scratch);
        book.add(&id("pump-1"), &[("sas_keys", list([KEY]))]).unwrap();
        book.save().unwrap();
        let written = fs::metadata(scratch.0.join("devices.toml")).unwrap();
        assert_eq!((written.uid(), written.gid()), (12_345, 12_346));
    }

    #[test]
    fn what_somebody_wrote_stays() {
        let scratch = Scratch::new();
        let before = "# ours\nversion = 1\n\n[[device]]  # the first\nid = 'a'   # so called\nenabled = true # yes\n\
                      [device.attributes]\nsite = \"x\"\n\n# about b\n[[device]]\nid = \"b\"\n\n# about c\n[[device]]\nid = \"c\"";
        write(&scratch, before, 0o640);
        let mut book = book(&scratch);
        book.set(&id("a"), "enabled", "false").unwrap();
        book.set(&id("b"), "enabled", "false").unwrap();
        book.set(&id("c"), "groups", "[\"g\"]").unwrap();
        book.set(&id("a"), "via", "[\"g\"]").unwrap();
        book.save().unwrap();
        assert_eq!(
            text(&scratch),
            "# ours\nversion = 1\n\n[[device]]  # the first\nid = 'a'   # so called\nvia = [\"g\"]\nenabled = false # yes\n\
             [device.attributes]\nsite = \"x\"\n\n# about b\n[[device]]\nid = \"b\"\nenabled = false\n\n# about c\n[[device]]\nid = \"c\"\ngroups = [\"g\"]"
        );
        let mode = fs::metadata(scratch.0.join("devices.toml")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        book.remove(&id("b")).unwrap();
        book.add(&id("d"), &[]).unwrap();
        book.save().unwrap();
        assert!(
            text(&scratch).ends_with(
                "site = \"x\"\n\n# about b\n# about c\n[[device]]\nid = \"c\"\ngroups = [\"g\"]\n\n[[device]]\nid = \"d\"\n"
            ),
            "{}",
            text(&scratch)
        );
    }

    #[test]
    fn mistakes_change_nothing() {
        let scratch = Scratch::new();
        write(&scratch, "[[device]]\nid = \"pump-1\"\n", 0o600);
        let mut book = book(&scratch);
        let error = book.add(&id("pump-1"), &[]).unwrap_err().to_string();
        assert!(error.contains("registered already, in line 1"), "{error}");
        let error = book.remove(&id("pump-2")).unwrap_err().to_string();
        assert!(error.contains("did you mean `pump-1`?"), "{error}");
        book.set(&id("pump-1"), "hub", "\"nowhere\"").unwrap();
        assert!(book.save().unwrap_err().to_string().contains("no connector called"));
        assert_eq!(text(&scratch), "[[device]]\nid = \"pump-1\"\n");
        assert!(!scratch.0.join("devices.toml.new").exists());
    }

    #[test]
    fn odd_ids_are_found_again() {
        let scratch = Scratch::new();
        let odd = ["a'b", "$%:#", "a(b)", "x=y;z", "*?!"];
        {
            let mut book = book(&scratch);
            for name in odd {
                book.add(&id(name), &[("attributes", "{ \"[[device]]\" = \"'\\\"\" }".into())]).unwrap();
            }
            book.save().unwrap();
        }
        let mut book = book(&scratch);
        for name in odd {
            book.set(&id(name), "enabled", "false").unwrap();
        }
        book.save().unwrap();
        assert!(odd.iter().all(|name| !book.devices().get(name).unwrap().enabled));
        for name in odd {
            book.remove(&id(name)).unwrap();
        }
        book.save().unwrap();
        assert_eq!((book.devices().len(), text(&scratch).trim()), (0, "version = 1"));
    }
}
