//! The routes by which engines are recognised, and their 404 for a model.

use dev_backend::{Backend, Config, Flavour};

use crate::client::{DEADLINE, ask, chat, fetch, open, post};

async fn start(flavour: Flavour) -> Backend {
    Backend::start(Config { flavour, slots: 2, ..Config::default() }).await.unwrap()
}

#[tokio::test]
async fn models_change_live_and_others_are_not_found() {
    for (flavour, kind) in [
        (Flavour::Openai, "invalid_request_error"),
        (Flavour::LlamaServer, "not_found_error"),
        (Flavour::Ollama, "not_found_error"),
        (Flavour::Vllm, "NotFoundError"),
    ] {
        let backend = start(flavour).await;
        let request = |path| post(path, &[], r#"{"model":"new"}"#);
        let answer = ask(backend.addr, &request("/v1/chat/completions")).await;
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (404, Some(kind)));
        let answer = ask(backend.addr, &request("/v1/messages")).await;
        assert_eq!((answer.status, answer.json()["type"].as_str()), (404, Some("error")));

        backend.set_models(&["new", "other"]);
        assert_eq!(ask(backend.addr, &request("/v1/chat/completions")).await.status, 200);
        let models = fetch(backend.addr, "/v1/models").await.json();
        let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
        assert_eq!(ids, ["new", "other"]);

        backend.set_models(&[]);
        assert_eq!(ask(backend.addr, &chat("{}", false)).await.status, 200);
        assert_eq!(backend.stats().probes, 1);
    }
}

#[tokio::test]
async fn each_engine_reports_its_load_in_its_own_way() {
    let llama = start(Flavour::LlamaServer).await;
    let vllm = start(Flavour::Vllm).await;
    let mut sockets = Vec::new();
    for backend in [&llama, &vllm] {
        for _ in 0..3 {
            sockets.push(open(backend.addr, &chat(r#"{"fail":"stall"}"#, true)).await);
        }
        backend.wait_running(3, DEADLINE).await.unwrap();
    }
    let slots = fetch(llama.addr, "/slots").await.json();
    assert!(slots.as_array().unwrap().iter().all(|slot| slot["is_processing"] == true));
    assert_eq!(fetch(llama.addr, "/props").await.json()["total_slots"], 2);
    let metrics = String::from_utf8(fetch(llama.addr, "/metrics").await.body).unwrap();
    assert!(metrics.contains("\nllamacpp:requests_processing 2.0\n"), "{metrics}");
    assert!(metrics.contains("\nllamacpp:requests_deferred 1.0\n"));

    let metrics = String::from_utf8(fetch(vllm.addr, "/metrics").await.body).unwrap();
    assert!(
        metrics.contains("\nvllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2.0\n"),
        "{metrics}"
    );
    assert!(metrics.contains("\nvllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 1.0\n"));

    drop(sockets);
    llama.wait_running(0, DEADLINE).await.unwrap();
    assert_eq!(fetch(llama.addr, "/slots").await.json()[0]["is_processing"], false);
}

#[tokio::test]
async fn each_engine_is_recognised_by_its_routes() {
    let table = [
        (Flavour::Openai, "stub", [200, 404, 404, 404, 404]),
        (Flavour::LlamaServer, "llama.cpp", [200, 200, 200, 404, 404]),
        (Flavour::Ollama, "stub", [404, 404, 404, 200, 404]),
        (Flavour::Vllm, "uvicorn", [200, 404, 200, 404, 200]),
    ];
    for (flavour, server, expected) in table {
        let backend = start(flavour).await;
        let mut statuses = Vec::new();
        for path in ["/health", "/slots", "/metrics", "/api/ps", "/version"] {
            let answer = fetch(backend.addr, path).await;
            assert_eq!(answer.header("server"), Some(server));
            statuses.push(answer.status);
        }
        assert_eq!(statuses, expected, "{flavour:?}");
    }
    let ollama = start(Flavour::Ollama).await;
    assert_eq!(fetch(ollama.addr, "/api/ps").await.json()["models"][0]["name"], "m");
}

#[tokio::test]
async fn health_is_as_it_is_set() {
    for flavour in [Flavour::Openai, Flavour::LlamaServer, Flavour::Vllm] {
        let backend = start(flavour).await;
        backend.set_healthy(false);
        assert_eq!(fetch(backend.addr, "/health").await.status, 503);
        backend.set_healthy(true);
        assert_eq!(fetch(backend.addr, "/health").await.status, 200);
    }
}
