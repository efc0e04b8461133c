//! Ways to a relay, and several relays at once.

use std::sync::Arc;

use dev_backend::{Backend, Config, Phase};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use modelrelay_worker::ProxyRules;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{LIMIT, Relay, Session, config, connected, read_request, within, worker, worker_with};

async fn stub() -> Backend {
    Backend::start(Config::default()).await.unwrap()
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

#[tokio::test]
async fn a_worker_comes_back_after_each_way_to_lose_a_relay() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    // A connection that is dropped at once, one that speaks no HTTP, a refused credential, a closing relay.
    drop(relay.accept_tcp().await);
    relay.accept_tcp().await.write_all(b"who are you\r\n\r\n").await.unwrap();
    let mut session = relay.accept().await;
    session.text("register").await;
    session.send_raw(close(1008, "unknown secret")).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    session.send_raw(close(1001, "draining")).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    let text = prometheus::TextEncoder::new().encode_to_string(&worker.registry().gather()).unwrap();
    let url = relay.url().replace("http", "ws");
    let connected = format!("modelrelay_worker_relay_connection{{relay=\"{url}\",state=\"connected\"}} 1");
    assert!(text.contains(&connected), "{text}");
    worker.kill().await;
}

#[tokio::test]
async fn a_relay_that_needs_the_worker_no_more_is_left_once_idle() {
    let (backend, relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let stub = json!({ "id": "a", "chunks": 10, "interval_ms": 20 });
    session.request(1, &json!({ "model": "m", "stream": true, "stub": stub })).await;
    backend.wait_phase("a", Phase::BeforeHead, LIMIT).await.unwrap();
    session.send(json!({ "type": "goaway", "deadline_ms": 60_000 })).await;
    session.send(json!({ "type": "empty" })).await;
    assert!(session.response(1).await.body.ends_with(b"[DONE]\n\n"));
    assert_eq!(u16::from(session.closed().await.code), 1000);
    relay.accept_streams(DEFAULT_WINDOW_BYTES).await.models(&["m"]).await;
    worker.kill().await;
}

#[tokio::test]
async fn two_relays_are_never_lent_more_than_the_slots() {
    let (backend, first, second) = (stub().await, Relay::start().await, Relay::start().await);
    let mut config = config(&first.url(), &backend.url());
    config.relay_urls.push(second.url());
    let worker = worker(config).await;
    let mut a = first.accept_streams(DEFAULT_WINDOW_BYTES).await;
    let mut held = a.text("grant").await["n"].as_u64().unwrap();
    assert_eq!(held, 4);
    let mut b = second.accept_streams(DEFAULT_WINDOW_BYTES).await;
    b.models(&["m"]).await;
    assert_eq!(a.text("recall").await["n"], 2);
    b.settle().await;
    assert!(!b.types.contains(&String::from("grant")), "nothing is lent twice");
    held -= 2;
    a.send(json!({ "type": "return", "n": 2 })).await;
    assert_eq!((b.text("grant").await["n"].as_u64(), held), (Some(2), 2));

    // What a lost relay held comes over, also what ran there once its backend call is closed.
    let stub = json!({ "id": "lost", "head_delay_ms": 60_000 });
    a.request(1, &json!({ "model": "m", "stub": stub })).await;
    backend.wait_phase("lost", Phase::BeforeHead, LIMIT).await.unwrap();
    drop(a);
    let mut lent = 0;
    while lent < 2 {
        lent += b.text("grant").await["n"].as_u64().unwrap();
    }
    assert_eq!(lent, 2);
    backend.wait_closed("lost", LIMIT).await.unwrap();
    worker.kill().await;
}

/// A certificate authority's file and an acceptor with a certificate of it for `localhost`.
fn private_tls(folder: &std::path::Path) -> (std::path::PathBuf, TlsAcceptor) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let file = folder.join("ca.pem");
    std::fs::write(&file, authority_certificate.pem()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    (file, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn a_relay_with_a_private_authority_is_reached_through_a_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, acceptor) = private_tls(folder.path());
    let (backend, relay) = (stub().await, Relay::start().await);
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://me:secret@{}", proxy.local_addr().unwrap());
    let rules = ProxyRules::from_variables(|name| (name == "https_proxy").then(|| address.clone())).unwrap();
    let target = format!("localhost:{}", relay.port());
    let mut config = config(&format!("https://{target}"), &backend.url());
    config.tls.ca_file = Some(authority);
    let worker = worker_with(config, rules).await;

    let (mut tcp, _) = within("the proxy", proxy.accept()).await.unwrap();
    let head = within("CONNECT", read_request(&mut tcp)).await.unwrap();
    assert!(head.starts_with(&format!("connect {target} http/1.1\r\n")), "{head}");
    assert!(head.contains("proxy-authorization: basic bwu6c2vjcmv0\r\n"), "{head}");
    // The proxy becomes the relay: what follows is the tunnel.
    tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let tls = within("TLS", acceptor.accept(tcp)).await.unwrap();
    let mut session = Session::upgrade(tls).await;
    assert_eq!(session.headers["host"], target.as_str());
    session.acknowledge(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    session.request(1, &json!({ "model": "m" })).await;
    assert_eq!(session.response(1).await.status, 200);
    worker.kill().await;
}

#[tokio::test]
async fn each_address_of_a_name_has_to_show_a_certificate_for_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, acceptor) = private_tls(folder.path());
    let (backend, relay) = (stub().await, Relay::start().await);
    let target = format!("localhost:{}", relay.port());
    let mut config = config(&format!("wss://{target}"), &backend.url());
    config.tls.ca_file = Some(authority);
    config.relay_resolve = modelrelay_protocol::config::RelayResolve::All;
    let worker = worker(config).await;

    // The certificate names no address, so a worker that asked for one would break off.
    let tls = within("TLS", acceptor.accept(relay.accept_tcp().await)).await.unwrap();
    assert_eq!(tls.get_ref().1.server_name(), Some("localhost"));
    let mut session = Session::upgrade(tls).await;
    assert_eq!(session.headers["host"], target.as_str());
    session.acknowledge(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    session.request(1, &json!({ "model": "m" })).await;
    assert_eq!(session.response(1).await.status, 200);
    worker.kill().await;
}

#[tokio::test]
async fn a_relay_of_an_unknown_authority_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let (_, acceptor) = private_tls(folder.path());
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&format!("wss://localhost:{}", relay.port()), &backend.url())).await;
    let refused = within("TLS", acceptor.accept(relay.accept_tcp().await)).await;
    assert!(refused.is_err());
    worker.kill().await;
}

#[tokio::test]
async fn a_proxy_that_refuses_is_tried_again() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap().to_string();
    let rules = ProxyRules::from_variables(|name| (name == "HTTP_PROXY").then(|| address.clone())).unwrap();
    let worker = worker_with(config(&relay.url(), &backend.url()), rules).await;
    for answer in ["HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"] {
        let (mut tcp, _) = within("the proxy", proxy.accept()).await.unwrap();
        within("CONNECT", read_request(&mut tcp)).await.unwrap();
        tcp.write_all(answer.as_bytes()).await.unwrap();
        if answer.contains("200") {
            Session::upgrade(tcp).await.acknowledge(DEFAULT_WINDOW_BYTES).await;
        }
    }
    worker.kill().await;
}
