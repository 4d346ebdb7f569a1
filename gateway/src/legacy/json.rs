//! JSON as text. Values pass through the legacy edge as they were written: key order, duplicates and the
//! spelling of numbers (`9007199254740993`, `1e400`, `-0`) survive, because nothing is ever decoded that
//! does not have to be. Nothing here recurses, so depth costs memory, not stack.
//!
//! Rules and error texts are those of Go's `encoding/json`, which the legacy server used: SDKs hand the
//! texts on to people.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// Deeper nesting is refused, as Go does. It protects the recursive parsers of workers and callers.
pub(crate) const MAX_DEPTH: usize = 10_000;

/// Why a text does not begin with a JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JsonError {
    /// There is nothing but white space.
    Empty,
    /// It ends in the middle of a value.
    CutOff,
    /// A character that must not be there, and where it stands in the grammar.
    Unexpected(u8, Cow<'static, str>),
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("EOF"),
            Self::CutOff => f.write_str("unexpected EOF"),
            Self::Unexpected(byte, place) => {
                write!(f, "invalid character {} {place}", shown(*byte))
            }
        }
    }
}

/// As Go quotes a byte: it takes it for a character of Latin-1.
fn shown(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x07 => r"'\a'".to_owned(),
        0x08 => r"'\b'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        0x0b => r"'\v'".to_owned(),
        0x0c => r"'\f'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

/// What may come next.
enum Next {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    /// After a value: a comma, the end of what it stands in, or, outside of everything, the end.
    After,
}

/// The first value in `text`, without the white space around it. What follows it is not looked at.
///
/// # Errors
/// When it is missing, cut off, wrong, or nested deeper than [`MAX_DEPTH`].
pub(crate) fn first_value(text: &[u8]) -> Result<&[u8], JsonError> {
    let start = skip_space(text, 0);
    let mut at = start;
    // What is open: `{` or `[`.
    let mut open: Vec<u8> = Vec::new();
    let mut next = Next::Value;
    loop {
        if matches!(next, Next::After) && open.is_empty() {
            return Ok(text.get(start..at).unwrap_or_default());
        }
        at = skip_space(text, at);
        let Some(&byte) = text.get(at) else {
            return Err(if at == start { JsonError::Empty } else { JsonError::CutOff });
        };
        let wrong = |place: &'static str| Err(JsonError::Unexpected(byte, place.into()));
        next = match (next, byte) {
            (Next::ValueOrEnd, b']') | (Next::KeyOrEnd, b'}') => {
                open.pop();
                at += 1;
                Next::After
            }
            (Next::Value | Next::ValueOrEnd, b'{' | b'[') => {
                if open.len() == MAX_DEPTH {
                    return wrong("exceeded max depth");
                }
                open.push(byte);
                at += 1;
                if byte == b'{' { Next::KeyOrEnd } else { Next::ValueOrEnd }
            }
            (Next::Value | Next::ValueOrEnd, _) => {
                at = scalar(text, at)?;
                Next::After
            }
            (Next::Key | Next::KeyOrEnd, b'"') => {
                at = string_end(text, at + 1)?;
                Next::Colon
            }
            (Next::Key | Next::KeyOrEnd, _) => return wrong("looking for beginning of object key string"),
            (Next::Colon, b':') => {
                at += 1;
                Next::Value
            }
            (Next::Colon, _) => return wrong("after object key"),
            (Next::After, _) => {
                let in_object = open.last() == Some(&b'{');
                at += 1;
                match (in_object, byte) {
                    (true, b',') => Next::Key,
                    (false, b',') => Next::Value,
                    (true, b'}') | (false, b']') => {
                        open.pop();
                        Next::After
                    }
                    (true, _) => return wrong("after object key:value pair"),
                    (false, _) => return wrong("after array element"),
                }
            }
        };
    }
}

fn skip_space(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// The end of the string, number or literal that begins at `at`.
fn scalar(text: &[u8], at: usize) -> Result<usize, JsonError> {
    match text.get(at) {
        Some(b'"') => string_end(text, at + 1),
        Some(b'-' | b'0'..=b'9') => number_end(text, at),
        Some(b't') => literal_end(text, at, "true"),
        Some(b'f') => literal_end(text, at, "false"),
        Some(b'n') => literal_end(text, at, "null"),
        Some(byte) => Err(JsonError::Unexpected(*byte, "looking for beginning of value".into())),
        None => Err(JsonError::CutOff),
    }
}

fn literal_end(text: &[u8], at: usize, literal: &str) -> Result<usize, JsonError> {
    for (offset, expected) in literal.bytes().enumerate() {
        match text.get(at + offset) {
            Some(byte) if *byte == expected => {}
            Some(byte) => {
                let place = format!("in literal {literal} (expecting '{}')", char::from(expected));
                return Err(JsonError::Unexpected(*byte, place.into()));
            }
            None => return Err(JsonError::CutOff),
        }
    }
    Ok(at + literal.len())
}

/// `at` is behind the opening quote; the answer is behind the closing one.
fn string_end(text: &[u8], mut at: usize) -> Result<usize, JsonError> {
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let special = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        let Some(offset) = special else { return Err(JsonError::CutOff) };
        at += offset;
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at = escape_end(text, at + 1)?,
            Some(byte) => return Err(JsonError::Unexpected(*byte, "in string literal".into())),
            None => return Err(JsonError::CutOff),
        }
    }
}

fn escape_end(text: &[u8], at: usize) -> Result<usize, JsonError> {
    match text.get(at) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 1),
        Some(b'u') => {
            for offset in 1..=4 {
                match text.get(at + offset) {
                    Some(byte) if byte.is_ascii_hexdigit() => {}
                    Some(byte) => {
                        let place = "in \\u hexadecimal character escape";
                        return Err(JsonError::Unexpected(*byte, place.into()));
                    }
                    None => return Err(JsonError::CutOff),
                }
            }
            Ok(at + 5)
        }
        Some(byte) => Err(JsonError::Unexpected(*byte, "in string escape code".into())),
        None => Err(JsonError::CutOff),
    }
}

fn number_end(text: &[u8], mut at: usize) -> Result<usize, JsonError> {
    if text.get(at) == Some(&b'-') {
        at += 1;
    }
    at = match text.get(at) {
        Some(b'0') => at + 1,
        _ => digits_end(text, at, "in numeric literal")?,
    };
    if text.get(at) == Some(&b'.') {
        at = digits_end(text, at + 1, "after decimal point in numeric literal")?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1;
        if matches!(text.get(at), Some(b'+' | b'-')) {
            at += 1;
        }
        at = digits_end(text, at, "in exponent of numeric literal")?;
    }
    Ok(at)
}

/// At least one digit.
fn digits_end(text: &[u8], at: usize, place: &'static str) -> Result<usize, JsonError> {
    match text.get(at) {
        Some(b'0'..=b'9') => {
            let rest = text.get(at..).unwrap_or_default();
            Ok(at + rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
        }
        Some(byte) => Err(JsonError::Unexpected(*byte, place.into())),
        None => Err(JsonError::CutOff),
    }
}

/// What a value is, by the name that Go gives it in errors.
pub(crate) fn kind(value: &[u8]) -> &'static str {
    match value.first() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'n') => "null",
        _ => "number",
    }
}

/// The members of an object, in order: name and value. `object` must have come from [`first_value`];
/// anything that is not an object has none.
pub(crate) fn members(object: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, &[u8])> {
    let mut parts = parts(object, b'{');
    std::iter::from_fn(move || {
        let name = parts.next()?;
        Some((self::text(name).unwrap_or_default(), parts.next()?))
    })
}

/// The elements of an array, in order. `array` must have come from [`first_value`]; anything that is not an
/// array has none.
pub(crate) fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    parts(array, b'[')
}

/// The values directly inside, names of members included.
fn parts(container: &[u8], bracket: u8) -> impl Iterator<Item = &[u8]> {
    let mut at = usize::from(container.first() == Some(&bracket));
    let inside = at == 1;
    std::iter::from_fn(move || {
        if !inside {
            return None;
        }
        loop {
            match container.get(at)? {
                b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' => at += 1,
                b'}' | b']' => return None,
                _ => break,
            }
        }
        let start = at;
        at = value_end(container, at)?;
        container.get(start..at)
    })
}

/// The end of a value that is known to be right: counts brackets, looks into nothing.
fn value_end(text: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match text.get(at)? {
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' => at += 1,
            _ => at = scalar(text, at).ok()?,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// The text of a string value; `None` for any other value. Lone surrogates and bytes that are not UTF-8
/// become U+FFFD.
pub(crate) fn string(value: &[u8]) -> Option<String> {
    text(value).map(Cow::into_owned)
}

/// The same, without a copy when it stands as it is meant.
pub(crate) fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let inner = String::from_utf8_lossy(inner);
    if !inner.contains('\\') {
        return Some(inner);
    }
    let mut out = String::with_capacity(inner.len());
    let mut rest = &*inner;
    while let Some((before, escape)) = rest.split_once('\\') {
        out.push_str(before);
        let mut chars = escape.chars();
        match chars.next() {
            Some('u') => {
                let (unit, after) = unit(chars.as_str());
                rest = after;
                out.push(match unit {
                    0xd800..0xdc00 => match after.strip_prefix("\\u").map(self::unit) {
                        Some((low @ 0xdc00..0xe000, after)) => {
                            rest = after;
                            let scalar = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                            char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER)
                        }
                        _ => char::REPLACEMENT_CHARACTER,
                    },
                    unit => char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER),
                });
                continue;
            }
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some(other) => out.push(other),
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    Some(out.into())
}

/// Four hexadecimal digits, and what follows them.
fn unit(text: &str) -> (u32, &str) {
    let (digits, rest) = text.split_at_checked(4).unwrap_or((text, ""));
    (u32::from_str_radix(digits, 16).unwrap_or(0xfffd), rest)
}

/// A value as Go writes it on: without white space, with `<`, `>`, `&`, U+2028 and U+2029 as escapes, and
/// U+FFFD for what is not UTF-8. Otherwise as it was spelled. `value` must be a part of `source`, of which
/// the answer is a slice when nothing had to change.
pub(crate) fn compact(source: &Bytes, value: &[u8]) -> Bytes {
    let text = String::from_utf8_lossy(value);
    let mut out: Option<Vec<u8>> = None;
    let (mut in_string, mut escaped, mut kept) = (false, false, 0);
    for (at, byte) in text.bytes().enumerate() {
        let replacement: Option<&[u8]> = match byte {
            b' ' | b'\t' | b'\r' | b'\n' if !in_string => Some(b""),
            b'<' => Some(b"\\u003c"),
            b'>' => Some(b"\\u003e"),
            b'&' => Some(b"\\u0026"),
            // U+2028 and U+2029 are E2 80 A8 and E2 80 A9: replaced at their last byte.
            0xa8 | 0xa9 if text.as_bytes().get(at.wrapping_sub(2)..at) == Some(&[0xe2, 0x80]) => {
                Some(if byte == 0xa8 { b"\\u2028" } else { b"\\u2029" })
            }
            _ => None,
        };
        if escaped {
            escaped = false;
        } else if byte == b'\\' {
            escaped = in_string;
        } else if byte == b'"' {
            in_string = !in_string;
        }
        if let Some(replacement) = replacement {
            let out = out.get_or_insert_with(|| Vec::with_capacity(text.len()));
            let until = if byte >= 0x80 { at - 2 } else { at };
            out.extend_from_slice(text.as_bytes().get(kept..until).unwrap_or_default());
            out.extend_from_slice(replacement);
            kept = at + 1;
        }
    }
    match (out, text) {
        (Some(mut out), text) => {
            out.extend_from_slice(text.as_bytes().get(kept..).unwrap_or_default());
            out.into()
        }
        (None, Cow::Borrowed(_)) => source.slice_ref(value),
        (None, Cow::Owned(text)) => text.into(),
    }
}

/// Appends `text` as a JSON string, escaped as Go does.
pub(crate) fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests;
