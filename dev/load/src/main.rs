//! The load generator as a program: one line of JSON to standard output, progress to standard error.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use dev_load::{
    Meter, Target, cancel, closed, flood, handover, hold, open, slow_reader, streams, upload, workers,
};
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Puts load on a server on this machine and checks what comes back.
#[derive(Debug, Parser)]
#[command(name = "dev-load")]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// Base URL; only loopback addresses are accepted.
    #[arg(long, global = true, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Model to ask for.
    #[arg(long, global = true, default_value = "m")]
    model: String,
    /// Header of every request, written name=value; may be repeated.
    #[arg(long = "header", global = true)]
    headers: Vec<String>,
    /// Threads to use; all cores unless given.
    #[arg(long, global = true)]
    threads: Option<usize>,
    /// No line of progress.
    #[arg(long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Small requests, each connection sending the next when it has an answer.
    Closed {
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
        connections: u64,
        #[command(flatten)]
        time: Time,
        /// Seconds at the start that are not measured.
        #[arg(long, default_value_t = 0.0)]
        warmup: f64,
        /// Requests of each connection, unless the time ends them before.
        #[arg(long)]
        requests: Option<u64>,
        /// Bytes of text in an answer.
        #[arg(long, default_value_t = 64)]
        answer_bytes: u64,
    },
    /// Small requests at a constant rate; latency counts from when each was due.
    Open {
        /// Requests per second.
        #[arg(long, default_value_t = 200.0)]
        rate: f64,
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
        connections: u64,
        #[command(flatten)]
        time: Time,
        /// Bytes of text in an answer.
        #[arg(long, default_value_t = 64)]
        answer_bytes: u64,
        /// Streams to run beside, each with 50 chunks a second.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=MAX_CONNECTIONS))]
        streams: u64,
    },
    /// Many streams at once, paced or at full speed.
    Streams(StreamArguments),
    /// As many streams at once as asked for, one chunk every 100 ms, then nothing.
    Burst {
        #[arg(long, default_value_t = 9000, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
        streams: u64,
        /// Chunks of each.
        #[arg(long, default_value_t = 50)]
        chunks: u32,
        /// Milliseconds between chunks.
        #[arg(long, default_value_t = 100)]
        interval_ms: u64,
    },
    /// Opens streams and holds them idle until a line on standard input, a signal or the end of the time.
    Hold {
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
        streams: u64,
        /// Seconds to hold them at most.
        #[arg(long, default_value_t = 600.0)]
        duration: f64,
        /// Seconds in which all have to be open.
        #[arg(long, default_value_t = 60.0)]
        open_within: f64,
    },
    /// Closes the client's connection and asks the stub when its own was closed.
    Cancel {
        /// before-head, before-first-byte, mid-stream, mid-stream-idle or non-streaming.
        #[arg(long, default_value = "mid-stream")]
        when: cancel::When,
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        requests: u32,
        /// Base URL of the stub; the target itself unless given.
        #[arg(long)]
        stub_url: Option<String>,
    },
    /// Asks for a long stream and reads nothing of it.
    SlowReader {
        /// Megabytes (10⁶) of the stream.
        #[arg(long, default_value_t = 400)]
        megabytes: u64,
        /// Seconds to read nothing.
        #[arg(long, default_value_t = 10.0)]
        pause: f64,
        /// Then read the rest and check it.
        #[arg(long)]
        finish: bool,
        /// Paced streams beside that do read.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=MAX_CONNECTIONS))]
        streams: u64,
    },
    /// Large request bodies.
    Upload {
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
        connections: u64,
        /// Mebibytes of a body.
        #[arg(long, default_value_t = 1.0)]
        mib: f64,
        #[command(flatten)]
        time: Time,
    },
    /// Registers workers that only answer pings, until a line on standard input, a signal or the end of the time.
    Workers {
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
        count: u64,
        #[command(flatten)]
        secret: Secret,
        /// Model that they serve.
        #[arg(long, default_value = "idle")]
        serves: String,
        /// Slots of each.
        #[arg(long, default_value_t = 1)]
        slots: u32,
        /// Plain v1 workers, without any extension.
        #[arg(long)]
        v1: bool,
        /// Seconds to hold them at most.
        #[arg(long, default_value_t = 600.0)]
        duration: f64,
        /// Seconds in which all have to be registered.
        #[arg(long, default_value_t = 60.0)]
        open_within: f64,
    },
    /// Makes requests wait for a worker, and measures from when there is one.
    Handover {
        /// join or requeue.
        #[arg(long, default_value = "join")]
        when: handover::When,
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        requests: u32,
        #[command(flatten)]
        secret: Secret,
    },
    /// A plain v1 worker sends a long stream to a client that reads nothing.
    Flood {
        /// Megabytes (10⁶) of the stream.
        #[arg(long, default_value_t = 400)]
        megabytes: u64,
        /// Seconds to read nothing once it is sent or cancelled.
        #[arg(long, default_value_t = 2.0)]
        pause: f64,
        #[command(flatten)]
        secret: Secret,
    },
}

#[derive(Debug, Args)]
struct Secret {
    /// File with the secret that workers show.
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
}

impl Secret {
    fn read(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(&self.secret_file);
        let text = text.with_context(|| format!("read {}", self.secret_file.display()))?;
        Ok(text.trim().to_owned())
    }
}

#[derive(Debug, Args)]
struct Time {
    /// Seconds.
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
}

#[derive(Debug, Args)]
struct StreamArguments {
    /// Streams at once.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
    streams: u64,
    /// Chunks of each.
    #[arg(long, default_value_t = 1000)]
    chunks: u32,
    /// Bytes of a chunk.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    chunk_bytes: u64,
    /// Milliseconds between chunks; 0 is full speed.
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// Chunks to a write of the stub at full speed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Seconds in which a stream that ended is followed by another; 0 is one stream each.
    #[arg(long, default_value_t = 0.0)]
    duration: f64,
    /// Spreads the starts over this many milliseconds.
    #[arg(long, default_value_t = 0)]
    stagger_ms: u64,
    /// Seconds that one stream may take.
    #[arg(long, default_value_t = 120.0)]
    timeout: f64,
    /// Anthropic's route and events.
    #[arg(long)]
    anthropic: bool,
}

const MAX_CONNECTIONS: u64 = 20_000;
const MAX_SECONDS: f64 = 3600.0;

fn seconds(value: f64) -> anyhow::Result<Duration> {
    if !(0.0..=MAX_SECONDS).contains(&value) {
        bail!("a time must be 0 to {MAX_SECONDS} seconds, not {value}");
    }
    Ok(Duration::from_secs_f64(value))
}

fn main() -> anyhow::Result<()> {
    let Arguments { common, command } = Arguments::parse();
    let Common { url, model, headers, threads, quiet } = common;
    let mut target = Target::parse(&url, &model)?;
    for header in &headers {
        target = target.with_header(header)?;
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(threads.max(1));
    }
    runtime.enable_all().build()?.block_on(async {
        let meter = Arc::new(Meter::default());
        tokio::select! {
            done = run(command, &target, &meter) => done,
            () = progress(&meter, quiet) => Ok(()),
        }
    })
}

async fn run(command: Command, target: &Target, meter: &Arc<Meter>) -> anyhow::Result<()> {
    match command {
        Command::Closed { connections, time, warmup, requests, answer_bytes } => {
            room_for(connections)?;
            let options = closed::Options {
                connections: connections as usize,
                duration: seconds(time.duration)?,
                warmup: seconds(warmup)?,
                requests: requests.unwrap_or(u64::MAX),
                answer_bytes,
            };
            print(&closed::run(target, &options, meter).await)
        }
        Command::Open { rate, connections, time, answer_bytes, streams } => {
            room_for(connections + streams)?;
            if !(0.1..=1e6).contains(&rate) {
                bail!("--rate must be 0.1 to 1000000, not {rate}");
            }
            let duration = seconds(time.duration)?;
            let streams = beside(streams, duration);
            let options =
                open::Options { rate, duration, connections: connections as usize, answer_bytes, streams };
            print(&open::run(target, &options, meter).await)
        }
        Command::Streams(arguments) => {
            room_for(arguments.streams)?;
            print(&streams::run(target, &arguments.options()?, meter).await)
        }
        Command::Burst { streams, chunks, interval_ms } => {
            room_for(streams)?;
            let interval = Duration::from_millis(interval_ms);
            let options = streams::Options {
                streams: streams as usize,
                chunks,
                interval,
                ..streams::Options::default()
            };
            print(&streams::run(target, &options, meter).await)
        }
        Command::Hold { streams, duration, open_within } => {
            room_for(streams)?;
            let options = hold::Options { streams: streams as usize, timeout: seconds(open_within)? };
            let duration = seconds(duration)?;
            let mut held = hold::open(target, &options, meter).await;
            print(&held.report)?;
            until_told(duration).await?;
            let broken = held.broken().await;
            held.release();
            print(&json!({"released": options.streams, "broken": broken}))
        }
        Command::Cancel { when, requests, stub_url } => {
            let stub = match stub_url {
                Some(url) => Target::parse(&url, "")?,
                None => target.clone(),
            };
            let options = cancel::Options { when, requests, ..cancel::Options::default() };
            print(&cancel::run(target, &stub, &options, meter).await.context("ask the stub")?)
        }
        Command::SlowReader { megabytes, pause, finish, streams } => {
            let pause = seconds(pause)?;
            let options = slow_reader::Options {
                bytes: megabytes * 1_000_000,
                pause,
                finish,
                beside: beside(streams, pause),
                ..slow_reader::Options::default()
            };
            print(&slow_reader::run(target, &options, meter).await)
        }
        Command::Upload { connections, mib, time } => {
            if !(0.0..=1024.0).contains(&mib) {
                bail!("--mib must be 0 to 1024, not {mib}");
            }
            let options = upload::Options {
                connections: connections as usize,
                bytes: (mib * 1024.0 * 1024.0) as usize,
                duration: seconds(time.duration)?,
                ..upload::Options::default()
            };
            print(&upload::run(target, &options, meter).await)
        }
        Command::Workers { count, secret, serves, slots, v1, duration, open_within } => {
            room_for(count)?;
            let options = workers::Options {
                count: count as usize,
                secret: secret.read()?,
                model: serves,
                slots,
                v1,
                timeout: seconds(open_within)?,
            };
            let duration = seconds(duration)?;
            let mut workers = workers::open(target, &options, meter).await;
            print(&workers.report)?;
            until_told(duration).await?;
            print(&json!({"released": workers.report.registered, "lost": workers.lost()}))
        }
        Command::Handover { when, requests, secret } => {
            let patience = Duration::from_secs(35);
            let options = handover::Options { when, secret: secret.read()?, requests, patience };
            print(&handover::run(target, &options, meter).await)
        }
        Command::Flood { megabytes, pause, secret } => {
            let options = flood::Options {
                secret: secret.read()?,
                bytes: megabytes * 1_000_000,
                pause: seconds(pause)?,
                ..flood::Options::default()
            };
            print(&flood::run(target, &options, meter).await)
        }
    }
}

impl StreamArguments {
    fn options(self) -> anyhow::Result<streams::Options> {
        let Self {
            streams,
            chunks,
            chunk_bytes,
            interval_ms,
            batch,
            duration,
            stagger_ms,
            timeout,
            anthropic,
        } = self;
        Ok(streams::Options {
            streams: streams as usize,
            chunks,
            chunk_bytes: chunk_bytes as usize,
            interval: Duration::from_millis(interval_ms),
            batch,
            duration: seconds(duration)?,
            stagger: Duration::from_millis(stagger_ms),
            timeout: seconds(timeout)?,
            anthropic,
            stub: serde_json::Map::new(),
        })
    }
}

/// Streams of 50 chunks a second that last as long as what they run beside.
fn beside(streams: u64, duration: Duration) -> Option<streams::Options> {
    let interval = Duration::from_millis(20);
    let chunks = (duration.as_millis() / interval.as_millis()).max(1) as u32;
    let timeout = duration * 2 + Duration::from_secs(30);
    (streams > 0).then(|| streams::Options {
        streams: streams as usize,
        chunks,
        interval,
        stagger: interval,
        timeout,
        ..streams::Options::default()
    })
}

/// Refuses a run that the limit on open files would spoil.
fn room_for(connections: u64) -> anyhow::Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|values| values.split_whitespace().next()?.parse::<u64>().ok());
    match limit {
        Some(limit) if limit < connections + 32 => {
            bail!("{connections} connections need a higher limit on open files than {limit} (see ulimit -n)")
        }
        Some(_) | None => Ok(()),
    }
}

fn print(report: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(report)?).and_then(|()| out.flush()).context("print the report")
}

/// Waits for a line on standard input, a signal, or the end of the time. Its end alone is no line.
async fn until_told(duration: Duration) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (told, line) = tokio::sync::oneshot::channel();
    // Not a task: a blocked read must not keep the runtime from ending.
    std::thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok_and(|read| read > 0) {
            let _ = told.send(());
        }
    });
    tokio::select! {
        Ok(()) = line => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = tokio::time::sleep(duration) => {}
    }
    Ok(())
}

/// Writes a line of progress every second, over itself on a terminal. Never ends.
async fn progress(meter: &Meter, quiet: bool) {
    if quiet {
        return std::future::pending().await;
    }
    let mut error = std::io::stderr();
    let (start, end) = if error.is_terminal() { ("\r\x1b[K", "") } else { ("", "\n") };
    let mut second = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        second += 1;
        let (done, failed, open) = (meter.done(), meter.failed(), meter.open());
        // Progress that cannot be shown is no reason to end a measurement.
        let _ = write!(error, "{start}{second} s: {done} done, {failed} failed, {open} open{end}");
    }
}
