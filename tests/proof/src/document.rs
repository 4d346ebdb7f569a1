//! The text of the document: prose, and between two comments the sections that runs write.

/// `text` with this section's body. A section that it does not have yet is put at its end, under a heading.
pub(crate) fn replace(text: &str, section: &str, body: &str) -> String {
    let (begin, end) = (format!("<!-- recorded: {section} -->\n"), "<!-- end -->\n");
    let inner = text.find(&begin).map(|at| at + begin.len()).and_then(|from| {
        let rest = text.get(from..)?;
        let until = rest.find(end)?;
        Some((text.get(..from)?, rest.get(until..)?))
    });
    match inner {
        Some((before, after)) => format!("{before}{body}{after}"),
        None => format!("{}\n\n### {section}\n\n{begin}{body}{end}", text.trim_end()).trim_start().to_owned(),
    }
}

pub(crate) fn body(origin: &str, command: &str, facts: &[(&str, String)]) -> String {
    let mut body = format!("{origin} Again: `{command}`\n\n| | |\n|---|---|\n");
    for (name, value) in facts {
        body.push_str(&format!("| {} | {} |\n", cell(name), cell(value)));
    }
    body
}

/// Text that cannot end its cell, its row or the section.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("<!--", "&lt;!--").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The day of a Unix time in seconds, in UTC, as YYYY-MM-DD.
pub(crate) fn day(seconds: u64) -> String {
    // Days since the first of March of the year 0; years so begin after the day that may be missing.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year_of_era, month + 3),
        _ => (era * 400 + year_of_era + 1, month - 9),
    };
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_where_it_stands() {
        let text = "Before.\n<!-- recorded: a -->\nold\n<!-- end -->\nBetween.\n\
                    <!-- recorded: b -->\nkept\n<!-- end -->\nAfter.\n";
        let replaced = replace(text, "a", "new\n");
        assert_eq!(replaced, text.replace("old", "new"));
        assert_eq!(replace(&replaced, "a", "old\n"), text);
    }

    #[test]
    fn a_section_that_is_new_stands_last() {
        let first = replace("# Title\n", "a", "one\n");
        assert_eq!(first, "# Title\n\n### a\n\n<!-- recorded: a -->\none\n<!-- end -->\n");
        let second = replace(&first, "b", "two\n");
        assert!(second.starts_with(first.trim_end()), "{second}");
        assert_eq!(replace("", "a", "one\n"), "### a\n\n<!-- recorded: a -->\none\n<!-- end -->\n");
    }

    #[test]
    fn no_fact_breaks_its_row() {
        let facts = [("name", "a | b\nc <!-- end -->".to_owned())];
        let body = body("Recorded today.", "./test core", &facts);
        assert!(body.ends_with("| name | a \\| b c &lt;!-- end --> |\n"), "{body}");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let days = [0, 951_782_399, 951_782_400, 1_763_856_000, 4_107_542_400];
        assert_eq!(days.map(day), ["1970-01-01", "2000-02-28", "2000-02-29", "2025-11-23", "2100-03-01"]);
    }
}
