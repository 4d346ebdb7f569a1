//! `GET /api/status`: the legacy status document.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use crewcall::clock::Timestamp;
use crewcall::scheduler::WorkerView;

use super::{Legacy, quoted, refusal};

/// What the original says of its memory; true here as well.
const MEMORY: &str = r#"{"autoCleanupDelay":"5 minutes after completion","cleanupInterval":"1 minute","description":"Tasks are automatically cleaned up after completion: immediately when result is retrieved, or after 5 minutes"}"#;

/// Counts of calls and all workers that are connected, by whatever protocol.
pub(crate) async fn status(State(legacy): State<Arc<Legacy>>) -> Response {
    let views = match legacy.handle.workers().await {
        Ok(views) => views,
        Err(error) => return refusal(&error),
    };
    let (mut methods, mut workers) = (0, String::new());
    for view in &views {
        if !workers.is_empty() {
            workers.push(',');
        }
        let count: u32 = view.pools.iter().map(|pool| pool.in_flight).sum();
        match legacy.crew.listed(&view.id) {
            Some(listed) => {
                methods += listed.method_count;
                write_worker(
                    &mut workers,
                    &listed.methods,
                    listed.seen_at(),
                    count,
                    &view.id,
                    &listed.ip,
                    &listed.group,
                );
            }
            None => {
                methods += view.methods.len();
                let ip = view.peer.rsplit_once(':').map_or(view.peer.as_str(), |(ip, _)| ip);
                let ip = ip.trim_matches(['[', ']']);
                write_worker(&mut workers, &methods_of(view), view.seen_at, count, &view.id, ip, &view.group);
            }
        }
    }
    let (plain, encrypted) = legacy.calls.count();
    let body = format!(
        "{{\"activeEncryptedTasks\":{},\"activeTasks\":{},\"completedEncryptedTasks\":{},\"completedTasks\":{},\
         \"memoryInfo\":{MEMORY},\"totalEncryptedTasks\":{},\"totalMethods\":{methods},\"totalTasks\":{},\
         \"workers\":[{workers}]}}\n",
        encrypted.active,
        plain.active,
        encrypted.completed,
        plain.completed,
        encrypted.active + encrypted.completed,
        plain.active + plain.completed,
    );
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn write_worker(
    out: &mut String,
    methods: &str,
    seen_at: Timestamp,
    count: u32,
    id: &str,
    ip: &str,
    group: &str,
) {
    let seen = SystemTime::UNIX_EPOCH + Duration::from_millis(seen_at.0);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{{\"methods\":{methods},\"lastPing\":\"{}\",\"count\":{count},\"id\":{},\"ip\":{},\"group\":{}}}",
        humantime::format_rfc3339_millis(seen),
        text(id),
        text(ip),
        text(group),
    );
}

/// The methods of a worker that joined by another protocol, in the legacy form.
fn methods_of(view: &WorkerView) -> String {
    let mut out = String::from("[");
    for method in &view.methods {
        if out.len() > 1 {
            out.push(',');
        }
        let docs = [&method.summary, &method.docs].into_iter().filter(|text| !text.is_empty());
        let docs: Vec<String> = docs.map(|text| self::text(text)).collect();
        let _ = write!(out, "{{\"name\":{},\"docs\":[{}]}}", text(&method.name), docs.join(","));
    }
    out.push(']');
    out
}

fn text(text: &str) -> String {
    String::from_utf8(quoted(text)).unwrap_or_default()
}
