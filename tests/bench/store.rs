//! The log alone, without a gateway: what a record costs in CPU and in bytes, and how long opening takes.
//!
//! `store DIRECTORY [--records N] [--bytes N] [--group N] [--cold]` makes a log under the directory and removes it again.
//! It prints one line of JSON for each case:
//!
//! - `append`, `drain`: microseconds of CPU of this thread, kernel included, for each record; group commit, then reading
//!   in order, settling and committing in the same groups.
//! - `through`: records appended, and read and settled a little later; bytes written for each by the log's own count, by
//!   `/proc/self/io` (whole pages, before the file system's own), and what commits would be alone on the disk: the same
//!   bytes written and synced into an allocated file in turn with the log.
//! - `open`: the time to open the log with all records in it, and the memory that this took.

#![allow(clippy::print_stdout, reason = "it is a program that prints figures")]

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use fieldgate::store::{AppendError, Files, Log, Place, Settings};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Options {
    /// Where the log is made; a directory of its own inside.
    directory: PathBuf,
    /// How many records.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// The bytes of each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// How many of them one commit has.
    #[arg(long, default_value_t = 64)]
    group: u64,
    /// Opens with nothing of the files in the cache.
    #[arg(long)]
    cold: bool,
}

/// Records that wait between being appended and being settled in `through`.
const LAG: usize = 4096;
/// Commits that the log and the bare file do in turn.
const TURN: u64 = 50;

fn main() -> Outcome<()> {
    let options = Options::parse();
    let path = options.directory.join("store-bench");
    fs::create_dir(&path)?;
    let done = through(&options, &path.join("through"))
        .and_then(|()| append(&options, &path.join("log")))
        .and_then(|()| open(&options, &path.join("log")))
        .and_then(|()| drain(&options, &path.join("log")));
    fs::remove_dir_all(&path)?;
    done
}

fn begin(path: &Path, found: impl FnMut(fieldgate::store::Found<'_>)) -> Outcome<Log<Files>> {
    let (log, report) = Log::open(Files::open(path)?, Settings::new(8 << 30), found)?;
    if report.damaged > 0 {
        return Err(format!("{report:?}").into());
    }
    Ok(log)
}

fn append(options: &Options, path: &Path) -> Outcome<()> {
    let body = vec![0x5a; options.bytes];
    let mut log = begin(path, |_| ())?;
    let (cpu, wall) = (Cpu::now()?, Instant::now());
    for record in 0..options.records {
        append_one(&mut log, &body)?;
        if record % options.group == options.group - 1 {
            log.commit()?;
        }
    }
    log.commit()?;
    report("append", options, &[("cpu_us", cpu.micros_each(options.records)?), rate(options.records, wall)]);
    Ok(log.close()?)
}

fn append_one(log: &mut Log<Files>, body: &[u8]) -> Outcome<(u64, Place)> {
    loop {
        match log.append(&[body]) {
            Err(AppendError::CommitFirst) => log.commit()?,
            appended => return Ok(appended?),
        }
    }
}

fn open(options: &Options, path: &Path) -> Outcome<()> {
    if options.cold {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if path.is_file() {
                fadvise(&File::open(path)?, 0, None, Advice::DontNeed)?;
            }
        }
    }
    let before = memory_kib("VmRSS")?;
    fs::write("/proc/self/clear_refs", "5")?;
    let (cpu, wall) = (Cpu::now()?, Instant::now());
    let mut bytes = 0;
    let log = begin(path, |found| bytes += found.body.len() as u64)?;
    let seconds = wall.elapsed().as_secs_f64();
    if log.usage().records != options.records || bytes != options.records * options.bytes as u64 {
        return Err("records are missing".into());
    }
    let figures = [
        ("seconds", seconds),
        ("cpu_us", cpu.micros_each(options.records)?),
        ("most_kib", memory_kib("VmHWM")? - before),
        ("kept_kib", memory_kib("VmRSS")? - before),
    ];
    report(if options.cold { "open, cold" } else { "open" }, options, &figures);
    Ok(())
}

fn drain(options: &Options, path: &Path) -> Outcome<()> {
    let mut places = Vec::new();
    let mut log = begin(path, |found| places.push((found.seq, found.place)))?;
    places.sort_unstable_by_key(|(seq, _)| *seq);
    let mut body = Vec::new();
    let (cpu, wall) = (Cpu::now()?, Instant::now());
    for (record, (seq, place)) in places.iter().enumerate() {
        log.read(*place, *seq, &mut body)?;
        log.settle(*seq, *place);
        if record as u64 % options.group == options.group - 1 {
            log.commit()?;
            log.tend(|_, _| ())?;
        }
    }
    log.commit()?;
    report("drain", options, &[("cpu_us", cpu.micros_each(options.records)?), rate(options.records, wall)]);
    Ok(())
}

/// The steady state: segments that were emptied are used again.
fn through(options: &Options, path: &Path) -> Outcome<()> {
    let body = vec![0xa5; options.bytes];
    let mut log = begin(path, |_| ())?;
    let mut waiting = std::collections::VecDeque::new();
    let bare = Bare::new(&path.join("bare"))?;
    let mut into = Vec::new();
    let (mut of_log, mut of_bare) = (Duration::ZERO, Duration::ZERO);
    let io_before = io_bytes()?;
    let mut io_of_bare = 0;
    let mut last_written = 0;
    let mut groups = Vec::new();
    for record in 0..options.records {
        waiting.push_back(append_one(&mut log, &body)?);
        if waiting.len() > LAG {
            let (seq, place) = waiting.pop_front().ok_or("it is longer than that")?;
            log.read(place, seq, &mut into)?;
            log.settle(seq, place);
        }
        if record % options.group == options.group - 1 {
            let begun = Instant::now();
            log.commit()?;
            of_log += begun.elapsed();
            log.tend(|_, _| ())?;
            let written = log.usage().written;
            groups.push((written - last_written) as usize);
            last_written = written;
            if groups.len() as u64 == TURN {
                let io = io_bytes()?;
                of_bare += bare.write(&groups)?;
                io_of_bare += io_bytes()? - io;
                groups.clear();
            }
        }
    }
    let usage = log.usage();
    let each = |bytes: u64| bytes as f64 / options.records as f64;
    let figures = [
        ("bytes", each(usage.written)),
        ("io_bytes", each(io_bytes()? - io_before - io_of_bare)),
        ("commits_per_s", usage.commits as f64 / of_log.as_secs_f64()),
        ("bare_commits_per_s", (usage.commits - groups.len() as u64) as f64 / of_bare.as_secs_f64()),
        ("share_of_bare", of_bare.as_secs_f64() / of_log.as_secs_f64()),
    ];
    report("through", options, &figures);
    Ok(())
}

/// A file of which all blocks are allocated and written, so that nothing but the bytes goes to the disk.
struct Bare {
    file: File,
    at: std::cell::Cell<u64>,
}

impl Bare {
    const BYTES: u64 = 8 << 20;

    fn new(path: &Path) -> Outcome<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        fallocate(&file, FallocateFlags::empty(), 0, Self::BYTES)?;
        file.write_all_at(&vec![0; Self::BYTES as usize], 0)?;
        file.sync_all()?;
        Ok(Self { file, at: std::cell::Cell::new(0) })
    }

    fn write(&self, groups: &[usize]) -> Outcome<Duration> {
        let most = groups.iter().max().copied().unwrap_or_default();
        let bytes = vec![0x3c; most];
        let begun = Instant::now();
        for len in groups {
            let at = if self.at.get() + *len as u64 > Self::BYTES { 0 } else { self.at.get() };
            self.file.write_all_at(&bytes[..*len], at)?;
            self.file.sync_data()?;
            self.at.set(at + *len as u64);
        }
        Ok(begun.elapsed())
    }
}

/// CPU time of this thread.
struct Cpu(u64);

impl Cpu {
    fn now() -> Outcome<Self> {
        let text = fs::read_to_string("/proc/thread-self/schedstat")?;
        Ok(Self(text.split(' ').next().ok_or("no CPU time")?.parse()?))
    }

    fn micros_each(&self, records: u64) -> Outcome<f64> {
        Ok((Self::now()?.0 - self.0) as f64 / 1000.0 / records as f64)
    }
}

fn rate(records: u64, since: Instant) -> (&'static str, f64) {
    ("records_per_s", records as f64 / since.elapsed().as_secs_f64())
}

fn line_of(path: &str, name: &str) -> Outcome<f64> {
    let text = fs::read_to_string(path)?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or("no such line")?;
    Ok(line.split_whitespace().next().ok_or("an empty line")?.parse()?)
}

fn io_bytes() -> Outcome<u64> {
    Ok(line_of("/proc/self/io", "write_bytes")? as u64)
}

fn memory_kib(name: &str) -> Outcome<f64> {
    line_of("/proc/self/status", name)
}

fn report(case: &str, options: &Options, figures: &[(&str, f64)]) {
    let Options { records, bytes, group, .. } = options;
    let figures: String = figures.iter().map(|(name, figure)| format!(", \"{name}\": {figure:.3}")).collect();
    println!(
        "{{\"case\": \"{case}\", \"records\": {records}, \"bytes_each\": {bytes}, \"group\": {group}{figures}}}"
    );
}
