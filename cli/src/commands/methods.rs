//! `crewcall methods`: what can be called.

use clap::Args;

use super::{ClientArgs, CommandError, Run, Session};
use crate::{
    exit::Exit,
    json::{self, Layout},
    output::{Output, Style, moment, on_one_line, safe},
    view,
};

/// The arguments of `methods`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct MethodsArgs {
    /// One method with its docs, schemas and examples. Default: a table of all
    name: Option<String>,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for MethodsArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let out = &session.out;
        let mut methods: Vec<view::Method> =
            session.client.methods().await?.into_iter().map(Into::into).collect();
        if let Some(name) = &self.name {
            methods.retain(|method| method.name == *name);
            if methods.is_empty() {
                let message = format!(
                    "no worker serves a method `{name}`, and no task waits for one; `crewcall methods` lists what is served"
                );
                return Err(CommandError::other(Exit::NotFound, message));
            }
        }
        if out.json {
            out.document(&methods)?;
        } else if self.name.is_some() {
            for (index, method) in methods.iter().enumerate() {
                if index > 0 {
                    out.line("")?;
                }
                show(out, method)?;
            }
        } else {
            let rows: Vec<[String; 6]> = methods
                .into_iter()
                .map(|method| {
                    let (workers, ready) = (method.workers.to_string(), method.ready.to_string());
                    let state = if method.pause.is_some() { "paused" } else { "" };
                    [method.name, method.version, workers, ready, state.to_owned(), method.summary]
                })
                .collect();
            let headers = ["NAME", "VERSION", "WORKERS", "WAITING", "STATE", "SUMMARY"];
            out.table(headers, &rows, "no method is served")?;
        }
        Ok(Exit::Ok)
    }
}

fn show(out: &Output, method: &view::Method) -> Result<(), CommandError> {
    let title = on_one_line(&format!("{} {}", method.name, method.version));
    out.line(&out.style(Style::Strong, title.trim_end()))?;
    if !method.summary.is_empty() {
        out.line(&on_one_line(&method.summary))?;
    }
    let workers = match method.workers {
        0 => "no live worker serves it".to_owned(),
        1 => "1 live worker serves it".to_owned(),
        count => format!("{count} live workers serve it"),
    };
    let waiting = match method.ready {
        0 => "no task waits".to_owned(),
        1 => "1 task waits for a worker".to_owned(),
        count => format!("{count} tasks wait for a worker"),
    };
    out.line(&format!("{workers}; {waiting}"))?;
    if let Some(view::Pause { reason, by, since_unix_ms }) = &method.pause {
        let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        out.line(&on_one_line(&format!("paused since {}{by}{reason}", moment(*since_unix_ms))))?;
    }
    if !method.docs.is_empty() {
        out.line(&format!("\n{}", safe(method.docs.trim_end())))?;
    }
    for (name, schema) in [("Input", &method.input_schema), ("Output", &method.output_schema)] {
        if let Some(schema) = schema {
            let schema = json::lay_out(schema.get(), Layout::Pretty);
            out.line(&format!("\n{} {schema}", out.style(Style::Strong, &format!("{name} schema:"))))?;
        }
    }
    if !method.examples.is_empty() {
        out.line(&format!("\n{}", out.style(Style::Strong, "Examples:")))?;
        for example in &method.examples {
            let example = json::lay_out(example.get(), Layout::Compact);
            out.line(&format!("  {}", call_line(&method.name, &example)))?;
        }
    }
    Ok(())
}

/// A command to copy; quoted for a POSIX shell.
pub(super) fn call_line(method: &str, json: &str) -> String {
    format!("crewcall call {} {}", quoted(method), quoted(json))
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", safe(text).replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_to_copy_survives_the_shell() {
        assert_eq!(call_line("add", "{\"a\":1}"), "crewcall call add '{\"a\":1}'");
        assert_eq!(call_line("a b", "\"it's\""), "crewcall call 'a b' '\"it'\\''s\"'");
        assert_eq!(call_line("x;rm -rf", "5"), "crewcall call 'x;rm -rf' 5");
    }
}
