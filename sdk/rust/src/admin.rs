//! For operators: orders about methods, dead letters, backups.
use tonic::Streaming;

use crate::client::Client;
use crate::error::CallError;
use crate::proto;

impl Client {
    /// Lets the tasks of a method wait until [`resume`](Self::resume); they are taken all the same.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn pause(&self, request: proto::PauseRequest) -> Result<proto::PauseResponse, CallError> {
        Ok(self.admin.clone().pause(request).await?.into_inner())
    }

    /// Lets them wait no longer. Says whether the method was paused.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn resume(&self, method: impl Into<String>) -> Result<bool, CallError> {
        let request = proto::ResumeRequest { method: method.into() };
        Ok(self.admin.clone().resume(request).await?.into_inner().was_paused)
    }

    /// One page of the dead letters that match, those that died last first.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn list_dead(
        &self,
        request: proto::ListDeadRequest,
    ) -> Result<proto::ListDeadResponse, CallError> {
        Ok(self.admin.clone().list_dead(request).await?.into_inner())
    }

    /// Runs dead letters again. The answer's `next_page_token`, while it has one, is how to go on.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`]. What is wrong with a single one is in its result.
    pub async fn retry_dead(
        &self,
        selection: proto::DeadSelection,
    ) -> Result<proto::RetryDeadResponse, CallError> {
        let request = proto::RetryDeadRequest { selection: Some(selection) };
        Ok(self.admin.clone().retry_dead(request).await?.into_inner())
    }

    /// Forgets dead letters. The answer's `next_page_token`, while it has one, is how to go on.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`]. What is wrong with a single one is in its result.
    pub async fn discard_dead(
        &self,
        selection: proto::DeadSelection,
    ) -> Result<proto::DiscardDeadResponse, CallError> {
        let request = proto::DiscardDeadRequest { selection: Some(selection) };
        Ok(self.admin.clone().discard_dead(request).await?.into_inner())
    }

    /// Copies everything stored into `backups/NAME` of the server's data directory. An empty name lets the
    /// server choose.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn backup(&self, name: impl Into<String>) -> Result<proto::BackupResponse, CallError> {
        let request = proto::BackupRequest { name: name.into() };
        Ok(self.admin.clone().backup(request).await?.into_inner())
    }

    /// A copy of everything stored, sent: first what comes, then its files, piece by piece.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn download_backup(&self) -> Result<Streaming<proto::DownloadBackupResponse>, CallError> {
        Ok(self.admin.clone().download_backup(proto::DownloadBackupRequest {}).await?.into_inner())
    }
}
