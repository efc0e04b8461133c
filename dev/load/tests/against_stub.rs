//! The load generator against the stub backend: counts are exact, and nothing wrong is overlooked.

use std::sync::Arc;
use std::time::Duration;

use dev_backend::{Answer, At, Backend, Config, Fail, Script, refused_addr};
use dev_load::{Failure, Meter, Target, cancel, closed, hold, open, slow_reader, streams, upload};
use serde_json::{Map, Value, json};

const LONG: Duration = Duration::from_secs(30);

async fn start() -> (Backend, Target, Arc<Meter>) {
    let backend =
        Backend::start(Config { keep_requests: 0, ..Config::default() }).await.expect("a free port");
    let target = Target::parse(&backend.url(), "m").expect("loopback");
    (backend, target, Arc::new(Meter::default()))
}

fn members(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).expect("an object")
}

#[tokio::test]
async fn closed_loop_counts_what_the_stub_counts() {
    let (backend, target, meter) = start().await;
    let options =
        closed::Options { connections: 8, duration: LONG, requests: 50, ..closed::Options::default() };
    let report = closed::run(&target, &options, &meter).await;
    assert_eq!((report.tally.ok, report.tally.failed), (400, 0));
    assert_eq!(report.tally.statuses[&200], 400);
    assert_eq!(report.latency.count, 400);
    assert!(report.latency.p50_us > 0.0 && report.latency.p50_us <= report.latency.p99_us);
    assert!((report.rps * report.seconds - 400.0).abs() < 1.0, "{report:?}");
    let stats = backend.wait_running(0, LONG).await.unwrap();
    assert_eq!((stats.requests, stats.completed, stats.connections), (400, 400, 8));
    assert!(stats.max_running <= 8);
    assert_eq!((meter.done(), meter.failed(), meter.open()), (400, 0, 0));
}

#[tokio::test]
async fn closed_loop_ends_with_its_time() {
    let (backend, target, meter) = start().await;
    let options = closed::Options {
        connections: 2,
        duration: Duration::from_millis(300),
        warmup: Duration::from_millis(50),
        ..closed::Options::default()
    };
    let report = closed::run(&target, &options, &meter).await;
    assert!(report.tally.ok > 0 && report.tally.failed == 0, "{report:?}");
    assert!((0.3..10.0).contains(&report.seconds));
    assert!(report.tally.ok < backend.stats().requests, "the warm-up is left out");
}

#[tokio::test]
async fn failures_are_counted_by_status_and_kind() {
    let cases = [
        (Script { status: 503, ..Script::default() }, Some(503), Failure::Status),
        (Script { fail: Some(Fail::Reset), ..Script::default() }, None, Failure::Broken),
        (Script { fail: Some(Fail::Close), ..Script::default() }, None, Failure::Broken),
        (Script { fail: Some(Fail::Garbage), ..Script::default() }, None, Failure::Garbage),
        (
            Script { fail: Some(Fail::Close), at: At::MidBody, ..Script::default() },
            Some(200),
            Failure::Broken,
        ),
        (
            Script { answer: Answer::Raw, corrupt_chunk: Some(0), ..Script::default() },
            Some(200),
            Failure::Mismatch,
        ),
    ];
    for (script, status, failure) in cases {
        let (backend, target, meter) = start().await;
        backend.set_script(script.clone());
        let options =
            closed::Options { connections: 2, duration: LONG, requests: 3, ..closed::Options::default() };
        let tally = closed::run(&target, &options, &meter).await.tally;
        assert_eq!((tally.ok, tally.failed), (0, 6), "{script:?}");
        assert_eq!(tally.failures.get(&failure), Some(&6), "{script:?} {tally:?}");
        assert_eq!(tally.statuses.into_iter().next(), status.map(|status| (status, 6)), "{script:?}");
    }
    let nobody = Target::parse(&format!("http://{}", refused_addr().unwrap()), "m").unwrap();
    let options =
        closed::Options { connections: 1, duration: LONG, requests: 3, ..closed::Options::default() };
    let tally = closed::run(&nobody, &options, &Arc::default()).await.tally;
    assert_eq!(tally.failures.get(&Failure::Connect), Some(&3));
}

#[tokio::test]
async fn open_loop_sends_every_request_that_is_due() {
    let (backend, target, meter) = start().await;
    let options = open::Options {
        rate: 500.0,
        duration: Duration::from_millis(400),
        connections: 4,
        ..open::Options::default()
    };
    let report = open::run(&target, &options, &meter).await;
    assert_eq!((report.tally.ok, report.tally.failed), (200, 0));
    assert_eq!((report.latency.count, report.service.count), (200, 200));
    assert_eq!(backend.stats().requests, 200);
}

#[tokio::test]
async fn open_loop_counts_a_stall_in_every_request_that_it_delays() {
    let (backend, target, meter) = start().await;
    backend.push_script(Script { head_delay_ms: 300, ..Script::default() });
    let options = open::Options {
        rate: 200.0,
        duration: Duration::from_millis(250),
        connections: 1,
        ..open::Options::default()
    };
    let report = open::run(&target, &options, &meter).await;
    assert_eq!(report.tally.ok, 50);
    // All fifty were due within 250 ms, and the only connection was taken for 300 ms.
    assert!(report.latency.p50_us > 100_000.0, "{report:?}");
    assert!(report.service.p50_us < report.latency.p50_us / 2.0, "{report:?}");
}

#[tokio::test]
async fn streams_come_whole_and_are_timed() {
    let (backend, target, meter) = start().await;
    for anthropic in [false, true] {
        for (batch, stub) in [(1, json!({})), (10, json!({})), (1, json!({"split": true, "fill": "utf8"}))] {
            let options = streams::Options {
                streams: 10,
                chunks: 50,
                batch,
                anthropic,
                stub: members(stub),
                ..streams::Options::default()
            };
            let report = streams::run(&target, &options, &meter).await;
            assert_eq!((report.tally.ok, report.tally.failed), (10, 0), "{report:?}");
            assert_eq!((report.chunks, report.chunk_latency.count, report.first_chunk.count), (500, 500, 10));
            assert!(report.bytes > 500 * 200 && report.chunks_per_second > 0.0);
        }
    }
    assert_eq!(backend.stats().completed, 60);
}

#[tokio::test]
async fn paced_streams_overlap_and_keep_their_pace() {
    let (backend, target, meter) = start().await;
    let options = streams::Options {
        streams: 20,
        chunks: 25,
        interval: Duration::from_millis(20),
        stagger: Duration::from_millis(20),
        ..streams::Options::default()
    };
    let report = streams::run(&target, &options, &meter).await;
    assert_eq!((report.tally.ok, report.chunks), (20, 500));
    assert!(report.seconds >= 0.48, "{report:?}");
    assert_eq!((report.peak, backend.stats().max_running), (20, 20));
    assert!(report.chunk_latency.p50_us < 20_000.0, "chunks are not gathered: {report:?}");
}

#[tokio::test]
async fn a_stream_that_is_not_exact_counts_as_failed() {
    let (_backend, target, meter) = start().await;
    for (fault, failure) in [
        (json!({"corrupt_chunk": 30}), Failure::Mismatch),
        (json!({"omit_chunk": 30}), Failure::Mismatch),
        (json!({"fail": "close", "at": "mid_body", "after_chunks": 30}), Failure::Broken),
        (json!({"fail": "reset", "at": "mid_body", "after_chunks": 30}), Failure::Broken),
        (json!({"fail": "garbage", "at": "mid_body", "after_chunks": 30}), Failure::Broken),
        (json!({"status": 500}), Failure::Status),
        (json!({"answer": "raw", "content_type": "text/event-stream", "fill": "crlf"}), Failure::Mismatch),
    ] {
        let options = streams::Options {
            streams: 3,
            chunks: 50,
            stub: members(fault.clone()),
            ..streams::Options::default()
        };
        let tally = streams::run(&target, &options, &meter).await.tally;
        assert_eq!((tally.ok, tally.failed), (0, 3), "{fault}");
        let found = *tally.failures.keys().next().unwrap();
        // Garbage where a chunk's size is due is broken or no HTTP, as the client sees it.
        assert!(
            found == failure || fault["fail"] == "garbage" && found == Failure::Garbage,
            "{fault} {found:?}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_stalls_is_over_after_its_time() {
    let (backend, target, meter) = start().await;
    let options = streams::Options {
        streams: 2,
        timeout: Duration::from_millis(100),
        stub: members(json!({"fail": "stall", "at": "mid_body"})),
        ..streams::Options::default()
    };
    let tally = streams::run(&target, &options, &meter).await.tally;
    assert_eq!(tally.failures.get(&Failure::Timeout), Some(&2));
    backend.wait_stats("2 cancelled", LONG, |stats| stats.cancelled == 2).await.unwrap();
}

#[tokio::test]
async fn held_streams_stay_open_until_they_are_released() {
    let (backend, target, meter) = start().await;
    let mut held = hold::open(&target, &hold::Options { streams: 300, timeout: LONG }, &meter).await;
    assert_eq!((held.report.open, held.report.tally.ok), (300, 300));
    assert_eq!(backend.stats().running, 300);
    assert_eq!(held.broken().await, 0);
    held.release();
    let stats = backend.wait_running(0, LONG).await.unwrap();
    assert_eq!((stats.cancelled, stats.max_running), (300, 300));
}

#[tokio::test]
async fn held_streams_that_break_are_reported() {
    let (backend, target, meter) = start().await;
    let mut held = hold::open(&target, &hold::Options { streams: 5, timeout: LONG }, &meter).await;
    backend.shutdown().await;
    assert_eq!(held.broken().await, 5);
}

#[tokio::test]
async fn every_cancel_is_noticed_in_every_phase() {
    let (backend, target, meter) = start().await;
    for when in cancel::When::ALL {
        let options = cancel::Options { when, requests: 10, patience: LONG };
        let report = cancel::run(&target, &target, &options, &meter).await.unwrap();
        assert_eq!((report.requests, report.reached, report.noticed), (10, 10, 10), "{when:?}");
        assert_eq!(report.latency.count, 10);
        assert!(report.latency.max_us < 1e6, "{report:?}");
    }
    let stats = backend.wait_running(0, LONG).await.unwrap();
    assert_eq!((stats.cancelled, stats.completed), (50, 0));
}

#[tokio::test]
async fn a_request_that_never_gets_there_is_not_counted_as_noticed() {
    let (_backend, target, meter) = start().await;
    let other = Backend::start(Config::default()).await.unwrap();
    let stub = Target::parse(&other.url(), "m").unwrap();
    let options =
        cancel::Options { when: cancel::When::BeforeHead, requests: 2, patience: Duration::from_millis(50) };
    let report = cancel::run(&target, &stub, &options, &meter).await.unwrap();
    assert_eq!((report.requests, report.reached, report.noticed), (2, 0, 0));
}

#[tokio::test]
async fn a_slow_reader_reads_nothing_and_then_everything() {
    let (backend, target, meter) = start().await;
    let bytes = 50_000_000;
    let pause = Duration::from_millis(300);
    let options = slow_reader::Options { bytes, pause, finish: true, ..slow_reader::Options::default() };
    let reading = slow_reader::run(&target, &options, &meter);
    let watching = async {
        backend.wait_running(1, LONG).await.unwrap();
        // The stub would be done at once if anyone read.
        backend
            .wait_stats("end", Duration::from_millis(150), |stats| stats.completed == 1)
            .await
            .unwrap_err();
    };
    let (report, ()) = tokio::join!(reading, watching);
    assert_eq!((report.began, report.failure), (true, None));
    assert_eq!(u64::from(report.events), bytes.div_ceil(16 * 1024));
    let options = slow_reader::Options { finish: false, ..options };
    assert_eq!(slow_reader::run(&target, &options, &meter).await.events, 0);
    backend.wait_stats("1 cancelled", LONG, |stats| stats.cancelled == 1).await.unwrap();
}

#[tokio::test]
async fn uploads_arrive_exactly() {
    let (backend, target, meter) = start().await;
    let options = upload::Options { connections: 2, bytes: 3 << 20, duration: LONG, requests: 3 };
    let report = upload::run(&target, &options, &meter).await;
    assert_eq!((report.tally.ok, report.tally.failed, report.latency.count), (6, 0, 6));
    assert!(report.mb_per_second > 0.0);
    // An answer that speaks of another body.
    backend.set_script(Script { body: Some(r#"{"bytes":1,"crc32":1}"#.to_owned()), ..Script::default() });
    let report = upload::run(&target, &options, &meter).await;
    assert_eq!(report.tally.failures.get(&Failure::Mismatch), Some(&6));
}

#[tokio::test]
async fn requests_carry_the_headers_they_were_told_to() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let target = Target::parse(&backend.url(), "m").unwrap().with_header("authorization=Bearer k").unwrap();
    let options =
        closed::Options { connections: 1, duration: LONG, requests: 1, ..closed::Options::default() };
    closed::run(&target, &options, &Arc::default()).await;
    assert_eq!(backend.requests()[0].header("authorization").collect::<Vec<_>>(), ["Bearer k"]);
}
