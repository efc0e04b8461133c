use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn problem(body: &str) -> (ScanProblem, usize) {
    let error = scan(body.as_bytes()).expect_err(body);
    (error.problem, error.at)
}

#[test]
fn model_and_stream_are_found_at_the_top_only() {
    let table = [
        (r#"{"model":"m"}"#, "m", false),
        (r#" { "stream" : true , "model" : "a/b:c" } "#, "a/b:c", true),
        (r#"{"model":"m","stream":false}"#, "m", false),
        (r#"{"model":"m","stream":null}"#, "m", false),
        (r#"{"m\u006fdel":"m","\u0073tream":true}"#, "m", true),
        (r#"{"model":"\u00e9\ud83d\ude00\n\"\\\/"}"#, "\u{e9}\u{1f600}\n\"\\/", false),
        (r#"{"a":{"model":1,"stream":"x"},"b":[{"model":2}],"model":"m"}"#, "m", false),
        (r#"{"Model":"x","model ":"y","":"z","model":"m"}"#, "m", false),
        (r#"{"x":1,"x":2,"model":""}"#, "", false),
    ];
    for (body, model, stream) in table {
        let scanned = scan(body.as_bytes()).expect(body);
        assert_eq!((scanned.model.as_ref(), scanned.stream), (model, stream), "{body}");
        let raw: String = serde_json::from_str(&body[scanned.model_range]).expect(body);
        assert_eq!(raw, model, "{body}");
    }
}

#[test]
fn the_prompt_is_the_first_field_that_can_be_one() {
    let body = br#"{"model":"m","input": ["x"],"messages":[]}"#;
    let scanned = scan(body).unwrap();
    assert_eq!(scanned.prefix_bytes(body, 100), br#"["x"]"#);
    assert_eq!(scanned.prefix_bytes(body, 2), br#"[""#);
    let body = br#"{"model":"m","n":{"input":1}}"#;
    assert_eq!(scan(body).unwrap().prefix_bytes(body, 100), b"");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    use ScanProblem::*;
    let table = [
        ("", NotAnObject, 0),
        ("[]", NotAnObject, 0),
        ("\"model\"", NotAnObject, 0),
        ("\u{feff}{}", NotAnObject, 0),
        ("{", UnexpectedEnd, 1),
        ("{}", ModelMissing, 2),
        (r#"{"model""#, UnexpectedEnd, 8),
        (r#"{"model" "m"}"#, ExpectedColon, 9),
        (r#"{"model":"m""#, UnexpectedEnd, 12),
        (r#"{"model":"m"} x"#, TrailingCharacters, 14),
        (r#"{"model":"m"}{}"#, TrailingCharacters, 13),
        (r#"{"model":"m",}"#, ExpectedName, 13),
        (r#"{,"model":"m"}"#, ExpectedName, 1),
        (r#"{'model':"m"}"#, ExpectedName, 1),
        (r#"{"model":"m" "x":1}"#, ExpectedCommaOrBrace, 13),
        (r#"{"model":1}"#, ModelType, 9),
        (r#"{"model":null}"#, ModelType, 9),
        (r#"{"model":}"#, ModelType, 9),
        (r#"{"model":"\ud800"}"#, ModelType, 9),
        (r#"{"model":"\ud800\u0041"}"#, ModelType, 9),
        (r#"{"model":"m","model":"m"}"#, ModelRepeated, 21),
        (r#"{"model":"m","mode\u006c":"m"}"#, ModelRepeated, 26),
        (r#"{"model":"m","stream":1}"#, StreamType, 22),
        (r#"{"model":"m","stream":"true"}"#, StreamType, 22),
        (r#"{"model":"m","stream":true,"stream":true}"#, StreamRepeated, 36),
        (r#"{"x":[1,]}"#, UnexpectedCharacter, 8),
        (r#"{"x":[1 2]}"#, ExpectedCommaOrBracket, 8),
        (r#"{"x":[1}}"#, ExpectedCommaOrBracket, 7),
        (r#"{"x":{"y":1]}"#, ExpectedCommaOrBrace, 11),
        (r#"{"x":{"y"}}"#, ExpectedColon, 9),
        (r#"{"x":tru}"#, UnexpectedCharacter, 5),
        (r#"{"x":NaN}"#, UnexpectedCharacter, 5),
        (r#"{"x":truely}"#, ExpectedCommaOrBrace, 9),
        (r#"{"x":01}"#, Number, 5),
        (r#"{"x":-}"#, Number, 5),
        (r#"{"x":1.}"#, Number, 5),
        (r#"{"x":.5}"#, UnexpectedCharacter, 5),
        (r#"{"x":1e+}"#, Number, 5),
        (r#"{"x":+1}"#, UnexpectedCharacter, 5),
        (r#"{"x":"\x"}"#, Escape, 6),
        (r#"{"x":"\u12g4"}"#, Escape, 6),
        (r#"{"x":"\u12"#, Escape, 6),
        ("{\"x\":\"a\nb\"}", ControlCharacter, 7),
        ("{\"x\":\"a", UnexpectedEnd, 7),
        ("{\"x\":1}\0", TrailingCharacters, 7),
    ];
    for (body, expected, at) in table {
        assert_eq!(problem(body), (expected, at), "{body}");
    }
    let error = scan(b"{\"model\":\"\xff\"}").unwrap_err();
    assert_eq!((error.problem, error.at), (NotUtf8, 10));
    assert_eq!(error.to_string(), "the body is not valid UTF-8 (at byte 10)");
}

#[test]
fn a_string_ends_where_it_ends_at_any_offset() {
    for before in 0..20 {
        let filler = "\u{7f}\u{e9}!\u{20ac}#[]\u{10ffff}".repeat(4);
        let text: String = filler.chars().take(before).collect();
        let at = r#"{"x":""#.len() + text.len();
        let good = format!(r#"{{"x":"{text}","model":"m"}}"#);
        assert_eq!(scan(good.as_bytes()).expect(&good).model, "m");
        let bad = format!("{{\"x\":\"{text}\u{1f}{filler}\",\"model\":\"m\"}}");
        assert_eq!(problem(&bad), (ScanProblem::ControlCharacter, at));
        let bad = format!(r#"{{"x":"{text}\{filler}"}}"#);
        assert_eq!(problem(&bad), (ScanProblem::Escape, at));
    }
}

#[test]
fn nesting_has_a_bound_and_needs_no_stack() {
    let nested = |levels: usize| {
        // The body is one level itself.
        let inner = levels - 1;
        format!(r#"{{"model":"m","x":{}{}}}"#, "[".repeat(inner), "]".repeat(inner))
    };
    assert!(scan(nested(MAX_DEPTH as usize).as_bytes()).is_ok());
    assert_eq!(problem(&nested(MAX_DEPTH as usize + 1)).0, ScanProblem::TooDeep);
    assert_eq!(problem(&nested(1_000_000)).0, ScanProblem::TooDeep);
    let objects = format!(r#"{{"model":"m","x":{}1{}}}"#, r#"{"y":"#.repeat(127), "}".repeat(127));
    assert!(scan(objects.as_bytes()).is_ok());
}

#[test]
fn another_model_is_written_in_and_nothing_else_changes() {
    let body = Bytes::from_static(br#"{"a": 1 ,"model" : "m\u0031" , "z":"model"}"#);
    let range = scan(&body).unwrap().model_range;
    let replaced = replace_model(&body, range, "we\"ird\u{e9}");
    assert_eq!(replaced, "{\"a\": 1 ,\"model\" : \"we\\\"ird\u{e9}\" , \"z\":\"model\"}");
    assert_eq!(scan(&replaced).unwrap().model, "we\"ird\u{e9}");
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no others", |n| n.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// What serde reads; it looks no closer than a scan at the fields that nobody asks for.
#[derive(serde::Deserialize)]
struct Fields {
    model: String,
    stream: Option<bool>,
}

fn by_serde(body: &[u8]) -> Option<(String, bool)> {
    let text = std::str::from_utf8(body).ok()?;
    let fields: Fields = serde_json::from_str(text).ok()?;
    Some((fields.model, fields.stream.unwrap_or(false)))
}

fn by_us(body: &[u8]) -> Option<(String, bool)> {
    scan(body).ok().map(|scanned| (scanned.model.into_owned(), scanned.stream))
}

proptest! {
    #[test]
    fn a_body_that_serde_wrote_is_read_alike(
        extra in prop::collection::btree_map("[a-z]{1,3}", json(), 0..6),
        model in any::<String>(),
        stream in any::<Option<bool>>(),
        pretty in any::<bool>(),
    ) {
        let mut object: serde_json::Map<String, Value> = extra.into_iter().collect();
        object.insert("model".into(), model.clone().into());
        object.insert("stream".into(), stream.into());
        let body =
            if pretty { serde_json::to_vec_pretty(&object) } else { serde_json::to_vec(&object) }.unwrap();
        prop_assert_eq!(by_us(&body), Some((model, stream.unwrap_or(false))));
    }

    #[test]
    fn a_damaged_body_is_judged_as_serde_judges_it(
        extra in prop::collection::btree_map("[a-z]{1,3}", json(), 0..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
    ) {
        let mut object: serde_json::Map<String, Value> = extra.into_iter().collect();
        object.insert("model".into(), "m".into());
        object.insert("stream".into(), true.into());
        let mut body = serde_json::to_vec(&object).unwrap();
        for (at, damage) in damage {
            let at = at.index(body.len() + 1);
            match damage {
                Damage::Cut => body.truncate(at),
                Damage::Remove if at < body.len() => { body.remove(at); }
                Damage::Remove => {}
                Damage::Insert(text) => { body.splice(at..at, text.bytes()); }
                Damage::Byte(byte) => body.insert(at, byte),
            }
        }
        // Serde takes an array for the fields in their order, and half a surrogate pair for no name.
        let text = String::from_utf8_lossy(&body).to_lowercase();
        prop_assume!(text.trim_start().starts_with('{') && !text.contains("\\ud"));
        prop_assert_eq!(by_us(&body), by_serde(&body), "{}", text);
    }

    #[test]
    fn any_bytes_get_an_answer(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = scan(&body);
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Cut,
    Remove,
    Insert(&'static str),
    Byte(u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    const PIECES: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u",
        "\\u00e9",
        "0",
        "-",
        ".",
        "e",
        "1e5",
        "true",
        "null",
        " ",
        "\n",
        "\t",
        "\"x\":1,",
        ",\"y\":[]",
        "\u{e9}",
        "{}",
    ];
    prop_oneof![
        Just(Damage::Cut),
        Just(Damage::Remove),
        prop::sample::select(&PIECES[..]).prop_map(Damage::Insert),
        any::<u8>().prop_map(Damage::Byte),
    ]
}
