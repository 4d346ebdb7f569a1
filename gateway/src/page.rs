//! `GET /`: who is here and what they serve, without a script. Everything that a worker says of itself is
//! untrusted; it is shown as text, and the policy of the page forbids all that text could turn into.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};
use crewcall::scheduler::{MethodView, Stats, WorkerView};
use crewcall::task::StateName;

use crate::legacy::Legacy;

/// More are counted, not listed.
const LISTED: usize = 200;
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 3] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// The page.
pub(crate) async fn page(State(legacy): State<Arc<Legacy>>) -> Response {
    let (handle, key) = (&legacy.handle, legacy.settings.worker_key.is_some());
    let html = match (handle.workers().await, handle.methods().await, handle.stats().await) {
        (Ok(workers), Ok(methods), Ok(stats)) => render(&workers, &methods, &stats, key),
        // The engine stops; there is nothing to show any more.
        _ => {
            include_str!("../../web/page.html").replace("<!-- content -->", "<p>This server is stopping.</p>")
        }
    };
    (HEADERS, Html(html)).into_response()
}

/// Its style.
pub(crate) async fn style() -> Response {
    (HEADERS, [(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("../../web/page.css"))
        .into_response()
}

fn render(workers: &[WorkerView], methods: &[MethodView], stats: &Stats, key: bool) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(out, "<p class=\"counts\">");
    for state in StateName::ALL {
        let _ = write!(out, "<span>{} <b>{}</b></span> ", state.as_str(), stats.in_state(state));
    }
    let _ = writeln!(out, "</p>\n<h2>Methods ({})</h2>", methods.len());
    if methods.is_empty() {
        out.push_str("<p>None is served yet.</p>\n");
    }
    for view in methods.iter().take(LISTED) {
        let _ = writeln!(
            out,
            "<details><summary><code>{}</code> {} <span>{} workers, {} waiting</span></summary>",
            Escaped(&view.name),
            Escaped(view.method.as_ref().map_or("", |method| &method.version_text)),
            view.workers,
            view.ready
        );
        let texts = view.method.as_ref().map(|method| [&method.summary, &method.docs, &method.input_schema]);
        for text in texts.into_iter().flatten().filter(|text| !text.is_empty()) {
            let _ = writeln!(out, "<pre dir=\"ltr\">{}</pre>", Escaped(text));
        }
        out.push_str("</details>\n");
    }
    more(&mut out, methods.len());
    let _ = writeln!(out, "<h2>Workers ({})</h2>", workers.len());
    if workers.is_empty() {
        let hint = if key { "/KEY" } else { "" };
        let _ = writeln!(
            out,
            "<p>None is connected. A legacy worker connects to <code>ws://HOST:PORT/api/worker/connect{hint}</code>, \
             one of any other kind over gRPC.</p>"
        );
    } else {
        out.push_str(
            "<table><thead><tr><th>worker<th>group<th>sdk<th>from<th>runs<th>methods</thead><tbody>\n",
        );
        for view in workers.iter().take(LISTED) {
            let runs: u32 = view.pools.iter().map(|pool| pool.in_flight).sum();
            let _ = writeln!(
                out,
                "<tr><td><code>{}</code><td>{}<td>{}<td>{}<td>{runs}<td>{}",
                Escaped(&view.id),
                Escaped(&view.group),
                Escaped(&view.sdk),
                Escaped(&view.peer),
                view.methods.len()
            );
        }
        out.push_str("</tbody></table>\n");
    }
    more(&mut out, workers.len());
    include_str!("../../web/page.html").replace("<!-- content -->", &out)
}

fn more(out: &mut String, all: usize) {
    if all > LISTED {
        let _ = writeln!(out, "<p>And {} more.</p>", all - LISTED);
    }
}

/// Text that is nothing but text: markup is escaped, and what could reorder or hide it is shown.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                // Controls, and the marks that turn the direction of text or take no room.
                '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    write!(f, "[U+{:04X}]", u32::from(c))?;
                }
                c if c.is_control() => write!(f, "[U+{:04X}]", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let text = "<img src=x onerror=\"alert('1')\"> & \u{202e}txt.exe\u{0}\nnext";
        assert_eq!(
            Escaped(text).to_string(),
            "&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt; &amp; [U+202E]txt.exe[U+0000]\nnext"
        );
    }
}
