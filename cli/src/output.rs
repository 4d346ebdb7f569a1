//! What commands print: answers on stdout, in words or as JSON; everything else on stderr.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    json::{self, Layout},
    log::no_color,
};

/// Where and how a command answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// JSON was asked for.
    pub(crate) json: bool,
    /// A person reads stdout.
    pub(crate) terminal: bool,
    /// A person reads stderr.
    pub(crate) stderr_terminal: bool,
    color: bool,
}

/// The look of a word on a terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
    Good,
    Bad,
    Busy,
    Faint,
    Strong,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { json, terminal, stderr_terminal: io::stderr().is_terminal(), color: terminal && !no_color() }
    }

    /// One line on stdout, at once.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Bytes on stdout as they are, at once.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// JSON on stdout: laid out on a terminal, on one line elsewhere.
    pub(crate) fn value(&self, json: &str) -> io::Result<()> {
        self.line(&json::lay_out(json, self.layout()))
    }

    /// The whole answer of a command as JSON.
    pub(crate) fn document(&self, value: &impl Serialize) -> io::Result<()> {
        self.value(&serde_json::to_string(value)?)
    }

    /// One of many JSON values, each on its own line.
    pub(crate) fn item(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&json::lay_out(&serde_json::to_string(value)?, Layout::Compact))
    }

    /// Something about the command, not its answer: on stderr, and only where a person reads it.
    pub(crate) fn note(&self, text: &str) {
        if self.stderr_terminal && !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        if self.terminal { Layout::Pretty } else { Layout::Compact }
    }

    pub(crate) fn style(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Good => "32",
            Style::Bad => "31",
            Style::Busy => "36",
            Style::Faint => "2",
            Style::Strong => "1",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Columns as wide as their widest cell. Says so when there are no rows.
    pub(crate) fn table<const N: usize>(
        &self,
        headers: [&str; N],
        rows: &[[String; N]],
        none: &str,
    ) -> io::Result<()> {
        if rows.is_empty() {
            self.note(none);
            return Ok(());
        }
        let rows: Vec<[String; N]> =
            rows.iter().map(|row| row.each_ref().map(|cell| on_one_line(cell))).collect();
        let mut widths = headers.map(str::len);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        push_row(&mut text, headers.iter().copied(), &widths);
        for row in &rows {
            push_row(&mut text, row.iter().map(String::as_str), &widths);
        }
        self.bytes(text.as_bytes())
    }

    /// `name: value` lines with the values below each other; empty values are left out.
    pub(crate) fn facts(&self, facts: &[(&str, String)]) -> io::Result<()> {
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
        let mut text = String::new();
        for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
            let _ = writeln!(text, "{:width$} {}", format!("{name}:"), safe(value));
        }
        self.bytes(text.as_bytes())
    }
}

fn push_row<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    let mut line = String::new();
    for (cell, width) in cells.zip(widths) {
        let _ = write!(line, "{cell:width$}  ");
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Text of others without what could drive a terminal. Lines and tabs stay.
pub(crate) fn safe(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}")
}

/// The same on one line.
pub(crate) fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Milliseconds since the Unix epoch, now.
pub(crate) fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// How long ago, in the largest unit that says it: `3s`, `5m`, `2h`, `9d`.
pub(crate) fn age(unix_ms: i64) -> String {
    if unix_ms == 0 {
        return String::new();
    }
    let seconds = now_unix_ms().saturating_sub(unix_ms).max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A point in time as RFC 3339, to the second; empty when not set.
pub(crate) fn moment(unix_ms: i64) -> String {
    let Ok(ms) = u64::try_from(unix_ms) else { return String::new() };
    match UNIX_EPOCH.checked_add(Duration::from_millis(ms)) {
        // Beyond the year 9999 there is no such text, and humantime would panic.
        Some(time) if ms > 0 && ms < 253_402_300_800_000 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => String::new(),
    }
}

/// Bytes in the largest binary unit that says them: `512 B`, `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, "KiB");
    for larger in ["MiB", "GiB", "TiB"] {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1024, larger);
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Milliseconds in words, empty for 0.
pub(crate) fn span(ms: u64) -> String {
    if ms == 0 { String::new() } else { humantime::format_duration(Duration::from_millis(ms)).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_moments_are_short() {
        let now = now_unix_ms();
        for (ago_s, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(age(now - ago_s * 1000), text);
        }
        assert_eq!(age(0), "");
        assert_eq!(moment(0), "");
        assert_eq!(moment(-5), "");
        assert_eq!(moment(i64::MAX), "");
        assert_eq!(moment(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert_eq!(span(0), "");
        assert_eq!(span(61_000), "1m 1s");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1 << 20, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn text_of_others_cannot_drive_the_terminal() {
        assert_eq!(safe("a\x1b[2Jb\nc\td"), "a\u{fffd}[2Jb\nc\td");
        assert_eq!(on_one_line("a\x1bb\nc"), "a b c");
    }
}
