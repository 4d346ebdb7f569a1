//! JSON as text. It is checked and laid out, never decoded: 9007199254740993 and 1e400 arrive as they were sent.

use std::fmt;

use serde_json::value::RawValue;

/// Why a text is no JSON.
#[derive(Debug)]
pub(crate) struct NotJson {
    problem: String,
    /// The line it was found in, and how many characters stand before the place.
    excerpt: Option<(String, usize)>,
    hint: &'static str,
}

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One line without spaces, for programs.
    Compact,
    /// Two spaces a level, for people.
    Pretty,
}

/// The longest part of a line that an error quotes, in characters.
const EXCERPT_CHARS: usize = 60;

/// Checks that the bytes are exactly one JSON value, and returns it without the white space around it.
///
/// # Errors
/// What was found where, with a hint.
pub(crate) fn check(bytes: &[u8]) -> Result<&RawValue, NotJson> {
    let text = std::str::from_utf8(bytes).map_err(|error| NotJson {
        problem: format!("byte {} is not UTF-8", error.valid_up_to() + 1),
        excerpt: None,
        hint: "JSON is UTF-8 text",
    })?;
    // Or an end that comes too soon would be found on the empty line after it.
    let text = text.trim_end();
    serde_json::from_str(text).map_err(|error| NotJson::new(text, &error))
}

impl NotJson {
    fn new(text: &str, error: &serde_json::Error) -> Self {
        let hint = hint(text);
        if text.trim().is_empty() {
            return Self { problem: "it is empty".to_owned(), excerpt: None, hint };
        }
        let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
        // serde_json counts columns in bytes, from 1.
        let at = if error.is_eof() { line.len() } else { error.column().saturating_sub(1) };
        let before = line.get(..at).unwrap_or(line).chars().count();
        let found = line.get(at..).and_then(|rest| rest.chars().next());
        let found = found.map_or_else(
            || "the end".to_owned(),
            |found| match found {
                control if control.is_control() => format!("`{}`", control.escape_default()),
                shown => format!("`{shown}`"),
            },
        );
        let whole = error.to_string();
        let words = whole.split(" at line ").next().unwrap_or_default();
        let problem = format!("{words} at line {} column {}, found {found}", error.line(), before + 1);
        let skipped = before.saturating_sub(EXCERPT_CHARS / 2);
        let excerpt: String = line.chars().skip(skipped).take(EXCERPT_CHARS).collect();
        // A tab would move the marker.
        let excerpt = excerpt.replace(|c: char| c.is_control(), " ");
        Self { problem, excerpt: Some((excerpt, before - skipped)), hint }
    }
}

/// The mistakes that shells invite.
fn hint(text: &str) -> &'static str {
    match text.trim_start().chars().next() {
        None => "write null for nothing",
        Some('\'') => {
            "the single quotes reached crewcall: this shell does not take them; use \"{\\\"a\\\":1}\" or @FILE"
        }
        Some('{' | '[') => {
            "names and text need double quotes, and the shell must not eat them: '{\"name\":\"text\"}'"
        }
        Some('@') => "to read a file write @FILE as the whole argument",
        _ => "text needs double quotes, and the shell must not eat them: '\"text\"'",
    }
}

impl NotJson {
    /// What was found where, for those who did not type it.
    pub(crate) fn without_hint(&self) -> String {
        match &self.excerpt {
            Some((excerpt, before)) => format!("{}\n  {excerpt}\n  {:before$}^", self.problem, ""),
            None => self.problem.clone(),
        }
    }
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhint: {}", self.without_hint(), self.hint)
    }
}

/// Lays out a text that is JSON; numbers and strings stay as they are.
pub(crate) fn lay_out(json: &str, layout: Layout) -> String {
    let mut out = String::with_capacity(json.len());
    let mut depth = 0_usize;
    let (mut in_string, mut escaped) = (false, false);
    let mut chars = json.chars().peekable();
    let newline = |out: &mut String, depth: usize| {
        if layout == Layout::Pretty {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        }
    };
    while let Some(c) = chars.next() {
        if in_string {
            out.push(c);
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                newline(&mut out, depth);
            }
            ':' if layout == Layout::Pretty => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_change_nothing_but_white_space() {
        let json = "{ \"a\\\"{\" : [1e400, 9007199254740993 ,{ }, [\n] ],\"b\":\"x: y,\\\\\"}";
        assert_eq!(
            lay_out(json, Layout::Compact),
            "{\"a\\\"{\":[1e400,9007199254740993,{},[]],\"b\":\"x: y,\\\\\"}"
        );
        assert_eq!(
            lay_out(json, Layout::Pretty),
            "{\n  \"a\\\"{\": [\n    1e400,\n    9007199254740993,\n    {},\n    []\n  ],\n  \"b\": \"x: y,\\\\\"\n}"
        );
    }

    #[test]
    fn json_passes_without_the_space_around_it() {
        assert_eq!(check(b" {\"a\": 1e400}\n").unwrap().get(), "{\"a\": 1e400}");
    }

    #[test]
    fn problems_say_what_was_found_where() {
        for (text, problem) in [
            ("{a:1}", "key must be a string at line 1 column 2, found `a`\n  {a:1}\n   ^\n"),
            ("{\"a\":", "EOF while parsing a value at line 1 column 6, found the end\n  {\"a\":\n       ^\n"),
            ("hello", "expected value at line 1 column 1, found `h`\n  hello\n  ^\n"),
            ("[\n 1,\n é]", "expected value at line 3 column 2, found `é`\n   é]\n   ^\n"),
            ("1 2", "trailing characters at line 1 column 3, found `2`\n  1 2\n    ^\n"),
            (" ", "it is empty\n"),
        ] {
            let message = check(text.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with(problem), "{text}: {message}");
            assert!(message.contains("hint: "), "{message}");
        }
        assert!(check(b"\"\xff\"").unwrap_err().to_string().starts_with("byte 2 is not UTF-8"));
    }

    #[test]
    fn a_long_line_is_quoted_around_the_place() {
        let text = format!("[{}x]", "1, ".repeat(200));
        let message = check(text.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("found `x`\n") && message.lines().all(|line| line.len() < 100), "{message}");
    }
}
