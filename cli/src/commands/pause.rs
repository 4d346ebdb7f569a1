//! `crewcall pause` and `resume`: methods whose tasks wait.

use clap::Args;
use crewcall_sdk::proto;
use serde::Serialize;

use super::{ClientArgs, CommandError, Run, Session};
use crate::{
    exit::Exit,
    output::{on_one_line, safe},
};

/// The arguments of `pause`.
#[derive(Args, Debug)]
#[command(after_help = "\
Its tasks are taken all the same and wait; their deadlines go on. What has begun goes on. Holds until `crewcall resume`,
also across a restart of the server. `crewcall methods` shows what is paused.

Exit codes: see `crewcall --help`.")]
pub(crate) struct PauseArgs {
    /// Name of the method
    method: String,

    /// Why, for those who wonder
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,

    /// Who says so
    #[arg(long, value_name = "NAME", env = "USER", default_value = "")]
    by: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// The answer of both.
#[derive(Serialize)]
struct Answer {
    method: String,
    paused: bool,
    /// What it was before.
    was_paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<bool>,
}

impl Run for PauseArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let Self { method, reason, by, .. } = self;
        let request = proto::PauseRequest { method: method.clone(), reason, by };
        let proto::PauseResponse { was_paused, known, .. } = session.client.pause(request).await?;
        if session.out.json {
            session.out.document(&Answer { method, paused: true, was_paused, known: Some(known) })?;
            return Ok(Exit::Ok);
        }
        let name = on_one_line(&safe(&method));
        let before = if was_paused { "was paused already and still is" } else { "is paused: its tasks wait" };
        session.out.line(&format!("{name} {before}"))?;
        if !known {
            eprintln!("note: no worker serves `{name}` and no task of it is there; is that its name?");
        }
        Ok(Exit::Ok)
    }
}

/// The arguments of `resume`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct ResumeArgs {
    /// Name of the method
    method: String,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for ResumeArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let method = self.method;
        let was_paused = session.client.resume(&method).await?;
        if session.out.json {
            session.out.document(&Answer { method, paused: false, was_paused, known: None })?;
            return Ok(Exit::Ok);
        }
        let words = if was_paused { "goes on" } else { "was not paused" };
        session.out.line(&format!("{} {words}", on_one_line(&safe(&method))))?;
        Ok(Exit::Ok)
    }
}
