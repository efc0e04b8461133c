//! vLLM: `/metrics` has gauges of what runs and waits, one for each engine core and model.

use modelrelay_protocol::frame::LoadReport;

pub(super) const PATH: &str = "/metrics";

/// Adds the gauges up.
pub(super) fn read(body: &[u8]) -> Option<LoadReport> {
    let text = std::str::from_utf8(body).ok()?;
    let running = sum(text, "vllm:num_requests_running");
    let waiting = sum(text, "vllm:num_requests_waiting");
    (running.is_some() || waiting.is_some()).then(|| LoadReport { running, waiting, ..LoadReport::default() })
}

/// Adds up all samples of one metric; none when there is no sample.
fn sum(text: &str, name: &str) -> Option<u32> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        // A longer name begins alike.
        let value = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest.strip_prefix(' ')? };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    let total = samples.fold(None, |total: Option<f64>, value| Some(total.unwrap_or(0.0) + value))?;
    // A float that is negative, too large or no number becomes the nearest count.
    Some(total as u32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn gauges_of_all_engine_cores_are_added_up() {
        let body = b"# HELP vllm:num_requests_running Number of requests in model execution batches.\n\
            # TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a}b\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a}b\"} 2.0\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"a}b\"} 1.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\"} 7.0\n";
        let report = super::read(body).unwrap();
        assert_eq!((report.running, report.waiting), (Some(5), Some(1)));
        assert_eq!(super::read(b"python_info 1"), None);
    }
}
