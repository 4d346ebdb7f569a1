//! Copies of the store, made while it is in use. They lie in a folder of the data directory: whoever may ask
//! for one may not say where on the server's disk it goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::{Handle, stopped};
use crate::engine::Message;
use crate::error::{Error, Reason, Result};
use crate::store::StoreError;

/// In the data directory.
const FOLDER: &str = "backups";
/// Names of copies that are made to be sent away. No name that a caller may give begins so.
const FOR_DOWNLOAD: &str = ".download-";
const NAME_BYTES: usize = 64;

/// A copy that stays on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupMade {
    /// Its name: it lies in `backups/NAME` of the data directory, and is a data directory itself.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of disk it takes.
    pub bytes: u64,
}

/// A copy that is made to be sent away. Dropping this removes it.
#[derive(Debug)]
pub struct BackupToSend {
    dir: PathBuf,
    /// Rows in it.
    pub rows: u64,
    /// Its files: name and length.
    pub files: Vec<(String, u64)>,
}

impl BackupToSend {
    /// Where a file of it lies.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, length)| length).sum()
    }
}

impl Drop for BackupToSend {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a backup that was sent cannot be removed");
        }
    }
}

impl Handle {
    /// Copies everything stored into `backups/NAME` of the data directory, which is then a data directory itself.
    /// The copy is the store as it is when this ends. An empty `name` lets the server choose. One at a time;
    /// dropping the future gives it up.
    ///
    /// # Errors
    /// `store_ephemeral`, `invalid_field` for the name, `backup_exists`, `backup_running`, `store_unavailable` when
    /// there is no room.
    pub async fn backup(&self, name: &str) -> Result<BackupMade> {
        let folder = self.backup_folder()?;
        let name = if name.is_empty() { chosen_name() } else { checked_name(name)?.to_owned() };
        let dir = folder.join(&name);
        if dir.exists() {
            let message =
                format!("there is a backup {name:?} already; give another name, or remove it on the server");
            return Err(Error::new(Reason::BackupExists, message));
        }
        let rows = self.copy_into(dir.clone()).await?;
        let bytes = files_of(&dir)?.iter().map(|(_, length)| length).sum();
        Ok(BackupMade { name, rows, bytes })
    }

    /// Copies everything stored to be sent to whoever asks.
    ///
    /// # Errors
    /// As [`Handle::backup`].
    pub async fn backup_to_send(&self) -> Result<BackupToSend> {
        let name = format!("{FOR_DOWNLOAD}{}", uuid::Uuid::new_v4().simple());
        let dir = self.backup_folder()?.join(name);
        let rows = self.copy_into(dir.clone()).await?;
        // From here on its drop removes the copy.
        let mut backup = BackupToSend { dir, rows, files: Vec::new() };
        backup.files = files_of(&backup.dir)?;
        Ok(backup)
    }

    fn backup_folder(&self) -> Result<PathBuf> {
        let dir = self.shared.data_dir.as_ref().map(|dir| dir.join(FOLDER));
        dir.ok_or_else(|| {
            Error::new(
                Reason::StoreEphemeral,
                "this server keeps everything in memory; there is nothing to back up",
            )
        })
    }

    async fn copy_into(&self, into: PathBuf) -> Result<u64> {
        let (reply, begun) = oneshot::channel();
        self.send(Message::Backup { into, reply }).await?;
        let copying = begun.await.map_err(|_| stopped())?;
        copying.await.map_err(|_| stopped())?.map_err(|error| match error {
            StoreError::InUse(_) => {
                Error::new(Reason::BackupRunning, "another backup is being made; wait for it to end")
            }
            StoreError::Full(_) | StoreError::DiskFull(_) => Error::new(
                Reason::StoreUnavailable,
                "there is no room for a backup on the disk of the data directory",
            ),
            other => {
                tracing::error!(error = %other, "a backup failed");
                Error::new(Reason::Internal, "the backup could not be written; the server's log says why")
            }
        })
    }
}

/// Removes what a process that died in the middle of sending a copy has left behind.
pub(crate) fn sweep(data_dir: &Path) {
    let Ok(found) = fs::read_dir(data_dir.join(FOLDER)) else { return };
    for entry in found.flatten() {
        if entry.file_name().to_string_lossy().starts_with(FOR_DOWNLOAD) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

fn checked_name(name: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let whole = name.len() <= NAME_BYTES && name.chars().all(plain);
    if whole && !name.starts_with('.') && !name.ends_with(".partial") {
        return Ok(name);
    }
    let problem = format!(
        "{name:?}: up to {NAME_BYTES} letters, digits, dots, dashes and underscores, no dot first, no .partial last"
    );
    Err(Error::invalid("name", problem))
}

fn chosen_name() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("backup-{}", since.as_millis())
}

fn files_of(dir: &Path) -> Result<Vec<(String, u64)>> {
    let list = || -> io::Result<Vec<(String, u64)>> {
        fs::read_dir(dir)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
            })
            .collect()
    };
    let mut files = list().map_err(|error| {
        tracing::error!(dir = %dir.display(), %error, "a backup cannot be read");
        Error::new(Reason::Internal, "the backup could not be read; the server's log says why")
    })?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_folder() {
        for name in ["nightly", "2026-11-23", "a.b_c-1", "a..b"] {
            assert_eq!(checked_name(name).unwrap(), name);
        }
        for name in [
            "..",
            ".",
            "a/b",
            "/etc",
            "..\\x",
            ".download-1",
            "a.partial",
            "a b",
            "é",
            "a\0",
            &"x".repeat(65),
        ] {
            assert_eq!(checked_name(name).unwrap_err().reason, Reason::InvalidField, "{name}");
        }
        assert!(checked_name(&chosen_name()).is_ok());
    }
}
