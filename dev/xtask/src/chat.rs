//! The few requests that the demo and the benchmark make themselves, as any client would.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const PROBE_LIMIT: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// Returns something when the URL answers with success.
pub(crate) fn answers(url: &str) -> Option<()> {
    get(url).map(drop)
}

/// Returns the first model that the relay lists.
pub(crate) fn first_model(relay_url: &str) -> Option<String> {
    let list: Value = serde_json::from_str(&get(&format!("{relay_url}/v1/models"))?).ok()?;
    Some(list["data"][0]["id"].as_str()?.to_owned())
}

fn get(url: &str) -> Option<String> {
    let request = ureq::get(url).config().timeout_global(Some(PROBE_LIMIT)).build();
    request.call().ok()?.into_body().read_to_string().ok()
}

/// Asks a question, hands each piece of the answer to `show` as it arrives, and returns their number.
///
/// # Errors
/// When the answer is refused or breaks off.
pub(crate) fn stream(
    relay_url: &str,
    model: &str,
    question: &str,
    show: impl FnMut(&str) -> Result<()>,
) -> Result<usize> {
    let body = json!({
        "model": model,
        "stream": true,
        "max_tokens": 200,
        "temperature": 0,
        "messages": [{ "role": "user", "content": question }],
    });
    let request =
        ureq::post(format!("{relay_url}/v1/chat/completions")).header("content-type", "application/json");
    let request = request.config().timeout_global(Some(ANSWER_LIMIT)).http_status_as_error(false).build();
    let mut response = request.send(body.to_string()).context("send the request")?;
    if !response.status().is_success() {
        let text = response.body_mut().read_to_string().unwrap_or_default();
        bail!("the relay answered {}: {}", response.status(), text.trim());
    }
    read_events(response.body_mut().as_reader(), show)
}

fn read_events(events: impl Read, mut show: impl FnMut(&str) -> Result<()>) -> Result<usize> {
    let mut pieces = 0;
    for line in BufReader::new(events).lines() {
        let line = line.context("the answer broke off")?;
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            return Ok(pieces);
        }
        let event: Value = serde_json::from_str(data).with_context(|| format!("parse the event {data}"))?;
        if let Some(error) = event.get("error") {
            bail!("the answer ended with {error}");
        }
        let delta = &event["choices"][0]["delta"];
        // Some engines put what a model thinks beside what it says.
        if let Some(text) = delta["content"].as_str().or_else(|| delta["reasoning_content"].as_str()) {
            pieces += usize::from(!text.is_empty());
            show(text)?;
        }
    }
    bail!("the answer broke off before its [DONE]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &str) -> (String, Result<usize>) {
        let mut text = String::new();
        let read = read_events(events.as_bytes(), |piece| {
            text.push_str(piece);
            Ok(())
        });
        (text, read)
    }

    #[test]
    fn pieces_of_an_answer_are_shown_in_order() {
        let (text, read) = read(concat!(
            ": waiting\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"A \"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"race\"}}]}\n\n",
            "data: {\"choices\":[]}\n\ndata: [DONE]\n\n",
        ));
        assert_eq!((text.as_str(), read.unwrap()), ("A race", 2));
    }

    #[test]
    fn an_answer_without_its_end_is_an_error() {
        let (text, read) = read("data: {\"choices\":[{\"delta\":{\"content\":\"A\"}}]}\n\n");
        assert_eq!(text, "A");
        assert!(read.unwrap_err().to_string().contains("broke off"));
    }

    #[test]
    fn an_error_event_is_an_error() {
        let (_, read) = read("data: {\"error\":{\"code\":\"worker_lost\"}}\n\n");
        assert!(read.unwrap_err().to_string().contains("worker_lost"));
    }
}
