use super::*;

fn value(text: &str) -> Result<&str, String> {
    first_value(text.as_bytes())
        .map(|value| std::str::from_utf8(value).unwrap())
        .map_err(|error| error.to_string())
}

fn compacted(text: &str) -> String {
    let source = Bytes::copy_from_slice(text.as_bytes());
    let value = first_value(&source).unwrap();
    String::from_utf8(compact(&source, value).to_vec()).unwrap()
}

#[test]
fn the_first_value_is_found_and_kept_as_it_is_spelled() {
    for (text, first) in [
        ("1", "1"),
        (" \t\r\n-0 ", "-0"),
        ("9007199254740993}", "9007199254740993"),
        ("1e400", "1e400"),
        ("0.10E-5,", "0.10E-5"),
        ("true false", "true"),
        ("null", "null"),
        (r#""a\"b\\" x"#, r#""a\"b\\""#),
        (r#"{"a":1,"a":[2,{}],"":[]}{"#, r#"{"a":1,"a":[2,{}],"":[]}"#),
        ("[ ]", "[ ]"),
        ("{ }", "{ }"),
        ("[1,[2,[3]]]", "[1,[2,[3]]]"),
        (r#""\ud800""#, r#""\ud800""#),
        ("\"\u{7f}é世🚀\"", "\"\u{7f}é世🚀\""),
    ] {
        assert_eq!(value(text), Ok(first), "{text}");
    }
}

#[test]
fn what_is_wrong_is_told_in_go_s_words() {
    for (text, error) in [
        ("", "EOF"),
        ("  \n", "EOF"),
        ("[", "unexpected EOF"),
        ("{\"a\"", "unexpected EOF"),
        ("\"abc", "unexpected EOF"),
        ("\"a\\", "unexpected EOF"),
        ("\"\\u12", "unexpected EOF"),
        ("-", "unexpected EOF"),
        ("1.", "unexpected EOF"),
        ("1e+", "unexpected EOF"),
        ("tru", "unexpected EOF"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("Infinity", "invalid character 'I' looking for beginning of value"),
        ("'a'", r"invalid character '\'' looking for beginning of value"),
        ("\u{feff}1", "invalid character 'ï' looking for beginning of value"),
        ("+1", "invalid character '+' looking for beginning of value"),
        (".5", "invalid character '.' looking for beginning of value"),
        ("-x", "invalid character 'x' in numeric literal"),
        ("1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ("nope", "invalid character 'o' in literal null (expecting 'u')"),
        ("[01]", "invalid character '1' after array element"),
        ("[1 2]", "invalid character '2' after array element"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("{1:2}", "invalid character '1' looking for beginning of object key string"),
        ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
        ("{\"a\":1]", "invalid character ']' after object key:value pair"),
        ("[1}", "invalid character '}' after array element"),
        ("\"\n\"", r"invalid character '\n' in string literal"),
        ("\"\u{1}\"", r"invalid character '\x01' in string literal"),
        (r#""\x""#, "invalid character 'x' in string escape code"),
        (r#""\u12g4""#, "invalid character 'g' in \\u hexadecimal character escape"),
        ("\u{0}", r"invalid character '\x00' looking for beginning of value"),
        ("\u{80}", r"invalid character 'Â' looking for beginning of value"),
    ] {
        assert_eq!(value(text), Err(error.to_owned()), "{text:?}");
    }
}

#[test]
fn depth_costs_no_stack_and_has_a_limit() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let deepest = nested(MAX_DEPTH);
    assert_eq!(value(&deepest), Ok(&*deepest));
    assert_eq!(compacted(&deepest), deepest);
    for depth in [MAX_DEPTH + 1, 100_000, 1_000_000] {
        let error = "invalid character '[' exceeded max depth";
        assert_eq!(value(&nested(depth)), Err(error.to_owned()));
        assert_eq!(value(&"[".repeat(depth)), Err(error.to_owned()));
    }
    let objects = format!("{}1{}", "{\"a\":".repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    assert_eq!(value(&objects), Ok(&*objects));
    let (name, inner) = members(objects.as_bytes()).next().unwrap();
    assert_eq!((&*name, inner.len()), ("a", objects.len() - 6));
}

#[test]
fn long_texts_are_read_once() {
    let long = format!("[\"{}\"]", "x".repeat(20 << 20));
    assert_eq!(value(&long).unwrap().len(), long.len());
    let numbers = format!("[1{}]", "234567890".repeat(1 << 20));
    assert_eq!(compacted(&numbers), numbers);
}

#[test]
fn compaction_changes_only_space_and_the_five_characters() {
    for (text, out) in [
        (" { \"a\" : 1.0 ,\n\t\"b\" : [ -0 , 1e400 ] } x", r#"{"a":1.0,"b":[-0,1e400]}"#),
        (r#"{"a":1,"a":2}"#, r#"{"a":1,"a":2}"#),
        ("\"<a>& \u{2028}\u{2029}\"", r#""\u003ca\u003e\u0026 \u2028\u2029""#),
        ("{\"<\" : \"\u{a8}\u{a9}\"}", "{\"\\u003c\":\"\u{a8}\u{a9}\"}"),
        (r#""a \" b" "#, r#""a \" b""#),
        (r#"[ "\\" , " x " ]"#, r#"["\\"," x "]"#),
        (r#""\ud800 \u003c \/""#, r#""\ud800 \u003c \/""#),
        ("\"世 界\"", "\"世 界\""),
    ] {
        assert_eq!(compacted(text), out, "{text}");
    }
}

#[test]
fn nothing_is_copied_that_need_not_change() {
    let source = Bytes::from_static(b"{\"method\":\"m\",\"params\":{\"a\":[1,2]}}");
    let (_, params) = members(&source).nth(1).unwrap();
    let compacted = compact(&source, params);
    assert_eq!(compacted.as_ptr(), params.as_ptr());
}

#[test]
fn bytes_that_are_no_text_become_replacement_characters() {
    let source = Bytes::from_static(b"\"a\xff<\"");
    let value = first_value(&source).unwrap();
    assert_eq!(compact(&source, value), "\"a\u{fffd}\\u003c\"".as_bytes());
    assert_eq!(string(value), Some("a\u{fffd}<".to_owned()));
}

#[test]
fn strings_are_read_and_written_as_go_does() {
    for (text, meaning) in [
        (r#""""#, ""),
        (r#""plain""#, "plain"),
        (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#""\u65b9\u6CD5""#, "方法"),
        (r#""\ud83d\ude80""#, "🚀"),
        (r#""\ud83dx""#, "\u{fffd}x"),
        (r#""\ude80\ud83d\ude80""#, "\u{fffd}🚀"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
    ] {
        assert_eq!(string(text.as_bytes()).as_deref(), Some(meaning), "{text}");
    }
    assert_eq!(string(b"5"), None);
    assert_eq!(string(b"null"), None);

    let mut out = Vec::new();
    quote("\"\\\n\r\t\u{1}<>&\u{2028}世\u{7f}", &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "\"\\\"\\\\\\n\\r\\t\\u0001\\u003c\\u003e\\u0026\\u2028世\u{7f}\""
    );
}

#[test]
fn containers_are_taken_apart() {
    let object = br#"{ "a" : {"x":[1]} , "\u0062" : "}" , "a" : null }"#;
    let found: Vec<(Cow<'_, str>, &[u8])> = members(first_value(object).unwrap()).collect();
    let expected: [(&str, &[u8]); 3] = [("a", br#"{"x":[1]}"#), ("b", br#""}""#), ("a", b"null")];
    assert_eq!(found, expected.map(|(name, value)| (name.into(), value)));
    let found: Vec<&[u8]> = elements(b"[1, [2,\"]\"], {}]").collect();
    let expected: [&[u8]; 3] = [b"1", b"[2,\"]\"]", b"{}"];
    assert_eq!(found, expected);
    assert_eq!(members(b"5").count() + elements(b"{}").count() + members(b"[1]").count(), 0);
}
