use proptest::prelude::*;

use super::*;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn pairs(headers: &Pairs) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
}

proptest! {
    #[test]
    fn any_bytes_give_a_frame_or_an_error(bytes: Vec<u8>, kind in 0_u8..9) {
        let _ = decode_relay_frame(bytes.clone().into());
        let _ = decode_worker_frame(bytes.clone().into());
        let mut with_kind = vec![kind];
        with_kind.extend(bytes);
        let _ = decode_relay_frame(with_kind.clone().into());
        if let Ok(WorkerFrame::Response(_, ResponsePart { head: Some(head), .. })) = decode_worker_frame(with_kind.into()) {
            prop_assert!(head.headers.iter().count() <= usize::from(u16::MAX));
        }
    }

    #[test]
    fn requests_come_back_as_they_were(
        stream: u32, streaming: bool, end: bool, model in ".{0,20}", path in ".{0,40}", body: Vec<u8>,
        headers: Vec<(Vec<u8>, Vec<u8>)>,
    ) {
        let meta = RequestMeta { body_bytes: body.len() as u64, streaming, model: &model, path: &path };
        let bytes = encode_request(StreamId(stream), meta, pairs(&headers), &body, end).unwrap();
        let RelayFrame::Request { stream: s, head, body: b, end: e } = decode_relay_frame(bytes).unwrap() else {
            panic!("another kind");
        };
        prop_assert_eq!((s, b.as_ref(), e), (StreamId(stream), body.as_slice(), end));
        prop_assert_eq!((head.streaming, head.body_bytes), (streaming, body.len() as u64));
        prop_assert_eq!((head.model, head.path), (model, path));
        let back: Pairs = head.headers.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        prop_assert_eq!(back, headers);
    }

    #[test]
    fn responses_come_back_as_they_were(
        stream: u32, status in proptest::option::of(100_u16..1000), end: bool, regrant: bool, body: Vec<u8>,
        usage in proptest::option::of((proptest::option::of(0_u32..1000), proptest::option::of(0_u32..1000))),
        headers: Vec<(Vec<u8>, Vec<u8>)>,
    ) {
        let usage = usage.map(|(a, b)| TokenCounts { prompt_tokens: a, completion_tokens: b, total_tokens: None });
        let head = status.map(|status| (status, pairs(&headers)));
        let bytes = encode_response(StreamId(stream), head, &body, end, usage, regrant).unwrap();
        let WorkerFrame::Response(s, part) = decode_worker_frame(bytes).unwrap() else { panic!("another kind") };
        prop_assert_eq!(s, StreamId(stream));
        prop_assert_eq!((part.end, part.regrant, part.usage), (end, regrant, usage));
        prop_assert_eq!(part.body.as_ref(), body.as_slice());
        prop_assert_eq!(part.head.as_ref().map(|h| h.status), status);
        if let Some(head) = part.head {
            let back: Pairs = head.headers.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(back, headers);
        }
    }
}

#[test]
fn short_frames_come_back_as_they_were() {
    let stream = StreamId(7);
    for code in FailureCode::ALL {
        assert_eq!(
            decode_worker_frame(encode_failed(stream, code, "why", true)),
            Ok(WorkerFrame::Failed { stream, code, message: "why".into(), regrant: true })
        );
    }
    assert_eq!(
        decode_worker_frame(encode_cancelled(stream, false)),
        Ok(WorkerFrame::Cancelled { stream, regrant: false })
    );
    assert_eq!(decode_worker_frame(encode_window(stream, 9)), Ok(WorkerFrame::Window { stream, bytes: 9 }));
    assert_eq!(decode_relay_frame(encode_window(stream, 9)), Ok(RelayFrame::Window { stream, bytes: 9 }));
    let reason = CancelReason::Timeout;
    assert_eq!(decode_relay_frame(encode_cancel(stream, &reason)), Ok(RelayFrame::Cancel { stream, reason }));
    assert_eq!(
        decode_relay_frame(encode_request_data(stream, b"ab", true)),
        Ok(RelayFrame::RequestData { stream, body: Bytes::from_static(b"ab"), end: true })
    );
    assert_eq!(
        decode_worker_frame(encode_response_data(stream, b"ab")),
        Ok(WorkerFrame::Response(
            stream,
            ResponsePart { body: Bytes::from_static(b"ab"), ..Default::default() }
        ))
    );
}

#[test]
fn frames_that_lie_about_lengths_are_refused() {
    assert_eq!(decode_relay_frame(Bytes::from_static(&[2, 0, 0])), Err(DecodeError::Truncated));
    assert_eq!(decode_relay_frame(Bytes::from_static(&[9, 0, 0, 0, 0, 1])), Err(DecodeError::UnknownKind(9)));
    assert_eq!(
        decode_relay_frame(Bytes::from_static(&[3, 0, 0, 0, 0, 1, 1, 1])),
        Err(DecodeError::Trailing(1))
    );
    assert_eq!(
        decode_worker_frame(Bytes::from_static(&[5, 4, 0, 0, 0, 1, 0, 99, 0, 0])),
        Err(DecodeError::BadStatus(99))
    );
    let large = vec![0; MAX_PAYLOAD_BYTES + 1];
    assert_eq!(
        decode_worker_frame(encode_response_data(StreamId(1), &large)),
        Err(DecodeError::TooLarge("payload"))
    );
}
