//! `crewcall backup`: a copy of everything stored, made while the server goes on.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;
use crewcall_sdk::{
    CallError,
    proto::{BackupFile, BackupManifest, download_backup_response::Kind},
};
use serde::Serialize;

use super::{ClientArgs, CommandError, Run, Session};
use crate::{exit::Exit, output::safe};

/// The arguments of `backup`.
#[derive(Args, Debug)]
#[command(after_help = "\
The copy is the store as it is when the command ends. It is a data directory: `crewcall serve --data-dir DIR` opens it,
`crewcall doctor` examines it.

Exit codes: see `crewcall --help`.")]
pub(crate) struct BackupArgs {
    /// New directory on this machine for the copy
    #[arg(long, value_name = "DIR", required_unless_present = "name")]
    to: Option<PathBuf>,

    /// Leave the copy on the server, in `backups/NAME` of its data directory
    #[arg(long, value_name = "NAME", conflicts_with = "to")]
    name: Option<String>,

    #[command(flatten)]
    client: ClientArgs,
}

/// The answer.
#[derive(Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    rows: u64,
    bytes: u64,
}

impl Run for BackupArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let (answer, place) = match &self.to {
            Some(to) => {
                let (rows, bytes) = session.download(to).await?;
                let to = to.display().to_string();
                (Answer { to: Some(to.clone()), name: None, rows, bytes }, to)
            }
            None => {
                let made = session.client.backup(self.name.unwrap_or_default()).await?;
                let place = format!("backups/{} in the server's data directory", made.name);
                (Answer { to: None, name: Some(made.name), rows: made.rows, bytes: made.bytes }, place)
            }
        };
        if session.out.json {
            session.out.document(&answer)?;
        } else {
            let Answer { rows, bytes, .. } = answer;
            session.out.line(&safe(&format!("{rows} rows, {bytes} bytes, in {place}")))?;
        }
        Ok(Exit::Ok)
    }
}

impl Session {
    /// Into a directory that has another name until it is whole and on the disk.
    async fn download(&self, to: &Path) -> Result<(u64, u64), CommandError> {
        let refuse =
            |why: &str| CommandError::other(Exit::StoreUnwritable, format!("{}: {why}", to.display()));
        if to.exists() {
            return Err(refuse("it is there already; a backup goes into a directory of its own"));
        }
        let Some(name) = to.file_name() else { return Err(refuse("it has no name")) };
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = Partial(to.with_file_name(partial_name));
        let written = |error: io::Error| refuse(&format!("cannot be written: {error}"));
        // Left by one that was interrupted.
        match fs::remove_dir_all(&partial.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(written(error)),
            _ => {}
        }
        let mut pieces = self.client.download_backup().await?;
        create_private(&partial.0).map_err(written)?;
        let (mut manifest, mut open): (Option<BackupManifest>, Option<Receiving>) = (None, None);
        while let Some(message) = pieces.message().await.map_err(CallError::from)? {
            match message.kind {
                Some(Kind::Manifest(said)) => manifest = Some(said),
                Some(Kind::Piece(piece)) => {
                    if open.as_ref().is_none_or(|file| file.name != piece.file) {
                        if let Some(file) = open.take() {
                            file.close().map_err(written)?;
                        }
                        let known = manifest.as_ref().is_some_and(|manifest| {
                            manifest.files.iter().any(|file| file.name == piece.file && is_plain(&file.name))
                        });
                        if !known {
                            return Err(unreadable());
                        }
                        open = Some(Receiving::create(&partial.0, piece.file).map_err(written)?);
                    }
                    if let Some(file) = &mut open {
                        file.file.write_all(&piece.data).map_err(written)?;
                    }
                }
                None => {}
            }
        }
        if let Some(file) = open.take() {
            file.close().map_err(written)?;
        }
        let manifest = manifest.ok_or_else(unreadable)?;
        for BackupFile { name, bytes } in &manifest.files {
            if !is_plain(name) {
                return Err(unreadable());
            }
            let path = partial.0.join(name);
            if *bytes == 0 {
                private_file(&path).and_then(|file| file.sync_all()).map_err(written)?;
            }
            if fs::metadata(&path).map_err(written)?.len() != *bytes {
                return Err(unreadable());
            }
        }
        // Its names, then its own.
        sync_dir(&partial.0).map_err(written)?;
        fs::rename(&partial.0, to).map_err(written)?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_dir(parent.unwrap_or(Path::new("."))).map_err(written)?;
        Ok((manifest.rows, manifest.files.iter().map(|file| file.bytes).sum()))
    }
}

/// What is not finished must not be taken for a backup. After the renaming it is no longer there.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

struct Receiving {
    name: String,
    file: File,
}

impl Receiving {
    fn create(dir: &Path, name: String) -> io::Result<Self> {
        Ok(Self { file: private_file(&dir.join(&name))?, name })
    }

    fn close(self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn unreadable() -> CommandError {
    CommandError::other(
        Exit::Failure,
        "the server broke off in the middle, or sent what is no backup; try again",
    )
}

/// A name, not a path: what a server says must not lead out of the directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Files that nobody else may read: payloads are whatever callers send.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn create_private(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn only_names_are_written() {
        assert!(is_plain("crewcall.db-wal"));
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
