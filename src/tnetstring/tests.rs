//! Claims about the tnetstring codec: examples, hostile inputs, and laws on random values.

use proptest::prelude::*;

use super::*;

const WIDE: Limits = Limits {
    depth: 64,
    digits: 9,
    size: 999_999_999,
};

fn encoded(value: &Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    out
}

/// `text` is `value`, both ways.
#[track_caller]
fn check(text: &str, value: &Value<'_>) {
    let rest = &b""[..];
    let expected = Parsed::Complete {
        value: value.clone(),
        rest,
    };
    assert_eq!(parse(text.as_bytes(), WIDE), Ok(expected));
    assert_eq!(String::from_utf8_lossy(&encoded(value)), text);
}

#[track_caller]
fn check_error(input: impl AsRef<[u8]>, limits: Limits, at: usize, kind: ErrorKind) {
    assert_eq!(
        parse(input.as_ref(), limits),
        Err(ParseError { at, kind }),
        "{}",
        input.as_ref().escape_ascii()
    );
}

#[track_caller]
fn check_partial(input: impl AsRef<[u8]>, need: usize) {
    assert_eq!(parse(input.as_ref(), WIDE), Ok(Parsed::Partial { need }));
}

#[test]
fn every_type_reads_and_writes_its_one_spelling() {
    check("0:,", &Value::Bytes(b""));
    check("5:hello,", &Value::from("hello"));
    check("1:0#", &Value::Integer(0));
    check("3:-17#", &Value::Integer(-17));
    check("20:-9223372036854775808#", &Value::Integer(i64::MIN));
    check("3:1.5^", &Value::Float(1.5));
    check("5:1e300^", &Value::Float(1e300));
    check("4:true!", &Value::Bool(true));
    check("5:false!", &Value::Bool(false));
    check("0:~", &Value::Null);
    check("0:]", &Value::List(Vec::new()));
    check("0:}", &Value::Dict(Vec::new()));
    check(
        "11:1:1#1:a,0:~]",
        &Value::List(vec![Value::Integer(1), Value::from("a"), Value::Null]),
    );
}

#[test]
fn an_access_log_line_and_a_control_command_read_as_they_are() {
    let line =
        "80:9:localhost,9:127.0.0.1,5:35544#10:1795166673#3:GET,4:/abc,8:HTTP/1.1,3:200#1:0#]";
    let value = Value::List(vec![
        Value::from("localhost"),
        Value::from("127.0.0.1"),
        Value::Integer(35544),
        Value::Integer(1_795_166_673),
        Value::from("GET"),
        Value::from("/abc"),
        Value::from("HTTP/1.1"),
        Value::Integer(200),
        Value::Integer(0),
    ]);
    check(line, &value);
    let command = "26:6:status,13:4:what,3:net,}]";
    let arguments = Value::Dict(vec![(b"what", Value::from("net"))]);
    check(
        command,
        &Value::List(vec![Value::from("status"), arguments]),
    );
}

#[test]
fn what_follows_a_value_is_handed_back() {
    let Ok(Parsed::Complete { value, rest }) = parse(b"1:1#0:,tail", WIDE) else {
        panic!("not complete");
    };
    assert_eq!(value, Value::Integer(1));
    assert_eq!(rest, b"0:,tail");
}

#[test]
fn a_dict_keeps_order_and_repetitions_and_gives_the_last() {
    let input = b"24:1:b,1:1#1:a,1:2#1:b,1:3#}";
    let Ok(Parsed::Complete { value, .. }) = parse(input, WIDE) else {
        panic!("not complete");
    };
    let keys: Vec<_> = value
        .as_dict()
        .unwrap()
        .iter()
        .map(|(key, _)| *key)
        .collect();
    assert_eq!(keys, [b"b", b"a", b"b"]);
    assert_eq!(value.get("b"), Some(&Value::Integer(3)));
    assert_eq!(value.get("c"), None);
}

#[test]
fn a_beginning_is_a_value_and_tells_how_much_is_missing() {
    check_partial("", 3);
    check_partial("0", 2);
    check_partial("5", 7);
    check_partial("5:", 6);
    check_partial("5:hel", 3);
    check_partial("5:hello", 1);
    check_partial("999999999:", 1_000_000_000);
}

#[test]
fn lengths_have_one_spelling() {
    for (input, at) in [
        (":,", 0),
        (" 1:a,", 0),
        ("+1:a,", 0),
        ("-1:a,", 0),
        ("1 :a,", 1),
        ("1x", 1),
        ("\n", 0),
        ("0x1:a,", 1),
    ] {
        check_error(input, WIDE, at, ErrorKind::Length);
    }
    check_error("01:a,", WIDE, 1, ErrorKind::LeadingZero);
    check_error("00:,", WIDE, 1, ErrorKind::LeadingZero);
}

#[test]
fn limits_are_errors_as_soon_as_they_are_passed() {
    let tight = Limits {
        depth: 1,
        digits: 3,
        size: 200,
    };
    check_error("1000", tight, 3, ErrorKind::Digits { max: 3 });
    check_error("201", tight, 2, ErrorKind::Size { max: 200 });
    assert_eq!(parse(b"200", tight), Ok(Parsed::Partial { need: 202 }));
    check_error("3:0:]]", tight, 4, ErrorKind::Depth { max: 1 });
    let plain = Limits { depth: 0, ..tight };
    check_error("0:}", plain, 2, ErrorKind::Depth { max: 0 });
    let loose = Limits {
        depth: 1,
        digits: 99,
        size: usize::MAX,
    };
    let huge = "9".repeat(30);
    check_error(&huge, loose, 19, ErrorKind::Size { max: usize::MAX });
    let largest = format!("{}:", usize::MAX);
    assert!(matches!(
        parse(largest.as_bytes(), loose),
        Ok(Parsed::Partial { need: usize::MAX })
    ));
}

#[test]
fn deep_nesting_stops_at_the_limit_and_not_at_the_end_of_the_stack() {
    let mut input = b"0:]".to_vec();
    for _ in 0..20_000 {
        let mut outer = Vec::with_capacity(input.len() + 10);
        write_element(&mut outer, b']', &input);
        input = outer;
    }
    let error = parse(&input, Limits::DEFAULT).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Depth { max: 32 });
}

#[test]
fn payloads_must_suit_their_type() {
    for integer in [
        "",
        "-",
        "+1",
        "01",
        "-0",
        "-01",
        "1.0",
        " 1",
        "1 ",
        "0x1",
        "9223372036854775808",
    ] {
        let input = format!("{}:{integer}#", integer.len());
        check_error(
            &input,
            WIDE,
            integer.len().to_string().len() + 1,
            ErrorKind::Integer,
        );
    }
    for float in [
        "", ".", "nan", "inf", "-inf", "infinity", "1e999", "1,5", "--1", "1e",
    ] {
        check_error(
            format!("{}:{float}^", float.len()),
            WIDE,
            2,
            ErrorKind::Float,
        );
    }
    for bool in ["", "True", "1", "yes"] {
        check_error(format!("{}:{bool}!", bool.len()), WIDE, 2, ErrorKind::Bool);
    }
    check_error("1:x~", WIDE, 2, ErrorKind::Null);
    check_error("1:x;", WIDE, 2, ErrorKind::Tag(b';'));
    check_error(b"1:x\xff", WIDE, 2, ErrorKind::Tag(0xff));
}

#[test]
fn what_is_inside_a_list_must_end_inside_it() {
    check_error("4:5:ab]", WIDE, 2, ErrorKind::Overrun);
    check_error("1:5]", WIDE, 2, ErrorKind::Overrun);
    check_error("8:1:a,5:bc]", WIDE, 6, ErrorKind::Overrun);
    check_error("8:1:1#1:2#}", WIDE, 4, ErrorKind::Key);
    check_error("4:1:a,}", WIDE, 4, ErrorKind::Unpaired);
    check_error("11:1:a,4:2:x~]]", WIDE, 9, ErrorKind::Overrun);
    check_error("11:1:a,4:1:x~]]", WIDE, 11, ErrorKind::Null);
}

#[test]
fn errors_are_one_line_that_says_where() {
    let error = parse(b"1:x\n", WIDE).unwrap_err();
    assert_eq!(error.to_string(), "unknown type 0x0a at byte 2");
    let error = parse(b"x", WIDE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a length is not digits and a colon at byte 0"
    );
}

#[test]
fn a_float_without_spelling_is_written_as_null() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(encoded(&Value::Float(number)), b"0:~");
    }
}

#[test]
fn lengths_are_written_in_decimal() {
    for length in (0..1200).chain([99_999, 1 << 20]) {
        let mut out = Vec::new();
        write_length(&mut out, length);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{length}:"));
    }
}

#[test]
fn a_wrong_guess_of_the_length_moves_what_was_written() {
    for length in [0, 1, 9, 10, 99, 100, 999, 1000, 12_345] {
        for guess in [0, 1, 2, 3, 4, 9] {
            let mut out = b"before".to_vec();
            let open = Open::at_end(&mut out, guess);
            out.extend(std::iter::repeat_n(b'x', length));
            open.close(&mut out, b',');
            let mut expected = b"before".to_vec();
            write_bytes(&mut expected, &vec![b'x'; length]);
            assert_eq!(out, expected, "length {length}, guess {guess}");
        }
    }
}

/// Values that own what [`Value`] borrows.
#[derive(Debug, Clone)]
enum Owned {
    Bytes(Vec<u8>),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Null,
    List(Vec<Owned>),
    Dict(Vec<(Vec<u8>, Owned)>),
}

impl Owned {
    fn borrow(&self) -> Value<'_> {
        match self {
            Owned::Bytes(bytes) => Value::Bytes(bytes),
            Owned::Integer(number) => Value::Integer(*number),
            Owned::Float(number) => Value::Float(*number),
            Owned::Bool(yes) => Value::Bool(*yes),
            Owned::Null => Value::Null,
            Owned::List(values) => Value::List(values.iter().map(Owned::borrow).collect()),
            Owned::Dict(pairs) => Value::Dict(
                pairs
                    .iter()
                    .map(|(key, value)| (&key[..], value.borrow()))
                    .collect(),
            ),
        }
    }
}

fn values() -> impl Strategy<Value = Owned> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
    let finite = any::<f64>().prop_filter("has a spelling", |number| number.is_finite());
    let leaf = prop_oneof![
        bytes().prop_map(Owned::Bytes),
        any::<i64>().prop_map(Owned::Integer),
        finite.prop_map(Owned::Float),
        any::<bool>().prop_map(Owned::Bool),
        Just(Owned::Null),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let pair = (proptest::collection::vec(any::<u8>(), 0..20), inner.clone());
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Owned::List),
            proptest::collection::vec(pair, 0..6).prop_map(Owned::Dict),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(value in values(), tail in proptest::collection::vec(any::<u8>(), 0..5)) {
        let mut input = encoded(&value.borrow());
        input.extend_from_slice(&tail);
        let expected = Parsed::Complete { value: value.borrow(), rest: &tail };
        prop_assert_eq!(parse(&input, WIDE), Ok(expected));
    }

    #[test]
    fn every_split_is_partial_and_never_asks_for_too_much(value in values()) {
        let input = encoded(&value.borrow());
        for cut in 0..input.len() {
            let Ok(Parsed::Partial { need }) = parse(&input[..cut], WIDE) else {
                return Err(TestCaseError::fail(format!("cut at {cut}: not partial")));
            };
            prop_assert!(need >= 1 && cut + need <= input.len(), "cut at {}: needs {}", cut, need);
        }
    }

    #[test]
    fn random_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(parse(&input, Limits::DEFAULT));
    }

    #[test]
    fn bytes_of_the_alphabet_never_panic_and_reencode_as_they_were(input in "[0-9:,#^!~\\]}a-]{0,40}") {
        if let Ok(Parsed::Complete { value, rest }) = parse(input.as_bytes(), Limits::DEFAULT)
            && !input.contains('^')
        {
            prop_assert_eq!(encoded(&value), &input.as_bytes()[..input.len() - rest.len()]);
        }
    }

    #[test]
    fn mutated_values_never_panic(value in values(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut input = encoded(&value.borrow());
        let at = at.index(input.len());
        input[at] = byte;
        drop(parse(&input, Limits::DEFAULT));
    }
}
