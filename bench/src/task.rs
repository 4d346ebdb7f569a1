//! The work: adds two numbers, so that every answer says which question it belongs to.

use bytes::Bytes;
use crewcall_sdk::{
    NewTask, Payload, TaskOptions,
    proto::{Durability, PipeOutcome, outcome, pipe_outcome},
};

/// Bytes of a small call's payload.
pub const SMALL: usize = 50;
/// Bytes of a payload that is stored.
pub const STORED: usize = 300;

const FIRST: u64 = 10_000;
const SPAN: u64 = 90_000;

/// The method `index` of a crew.
pub fn method(index: u32) -> String {
    if index == 0 { "add".to_owned() } else { format!("add{index}") }
}

fn operands(number: u64) -> (u64, u64) {
    (FIRST + number % SPAN, FIRST + number / SPAN % SPAN)
}

/// The payload of call `number`: `{"a":10007,"b":10000,"note":"aaa…"}`, `size` bytes of it (at least 32).
pub fn params(number: u64, size: usize) -> Bytes {
    let (a, b) = operands(number);
    let mut text = format!("{{\"a\":{a},\"b\":{b},\"note\":\"").into_bytes();
    text.resize(size.saturating_sub(2).max(text.len()), b'a');
    text.extend_from_slice(b"\"}");
    text.into()
}

/// What a worker answers to a payload; `None` when it is not one of [`params`].
pub fn answer(payload: &[u8]) -> Option<Bytes> {
    let (a, rest) = number_after(payload, b"\"a\":")?;
    let (b, _) = number_after(rest, b"\"b\":")?;
    Some((a + b).to_string().into())
}

/// Whether a result is the answer to call `number`.
pub fn is_answer(number: u64, result: &[u8]) -> bool {
    let (a, b) = operands(number);
    number_after(result, b"").is_some_and(|(sum, rest)| rest.is_empty() && sum == a + b)
}

/// The digits right behind `key`, and what follows them.
fn number_after<'a>(text: &'a [u8], key: &[u8]) -> Option<(u64, &'a [u8])> {
    let at = text.windows(key.len().max(1)).position(|window| window.starts_with(key))?;
    let text = text.get(at + key.len()..)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    let number = number.iter().fold(0_u64, |sum, digit| sum.wrapping_mul(10) + u64::from(digit - b'0'));
    (digits > 0).then_some((number, rest))
}

/// Call `number` as a task of a method.
pub fn task(method: &str, number: u64, size: usize, durable: bool) -> NewTask {
    let options =
        durable.then(|| TaskOptions { durability: Durability::Durable.into(), ..TaskOptions::default() });
    NewTask {
        method: method.to_owned(),
        payload: Some(Payload { data: params(number, size), content_type: String::new() }),
        options,
    }
}

/// Checks the answer of a pipe to call `number`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check(number: u64, outcome: &PipeOutcome) -> Result<(), String> {
    let kind = match &outcome.kind {
        Some(pipe_outcome::Kind::Outcome(outcome)) => &outcome.kind,
        other => return Err(format!("call {number} was answered {other:?}")),
    };
    match kind {
        Some(outcome::Kind::Succeeded(result)) if is_answer(number, &result.data) => Ok(()),
        other => Err(format!("call {number} was answered {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_own_answer() {
        for number in [0, 1, 89_999, 90_000, 123_456_789] {
            let payload = params(number, SMALL);
            assert_eq!(payload.len(), SMALL);
            assert!(serde_json::from_slice::<serde_json::Value>(&payload).is_ok());
            let result = answer(&payload).unwrap();
            assert!(is_answer(number, &result));
            assert!(!is_answer(number + 1, &result));
        }
        assert_eq!(params(7, STORED).len(), STORED);
    }

    #[test]
    fn what_is_no_call_has_no_answer() {
        for text in ["", "{}", "{\"a\":1}", "{\"a\":,\"b\":2}"] {
            assert_eq!(answer(text.as_bytes()), None, "{text}");
        }
        for text in ["", "null", "20007x", " 20007"] {
            assert!(!is_answer(7, text.as_bytes()), "{text}");
        }
    }
}
