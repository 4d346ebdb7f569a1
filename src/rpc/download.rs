//! A backup on its way to whoever asked for it: read a piece at a time, as fast as it is taken.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tonic::Status;

use crate::error::{Error, Reason};
use crate::handle::BackupToSend;
use crate::proto::download_backup_response::Kind;
use crate::proto::{BackupFile, BackupManifest, BackupPiece, DownloadBackupResponse};

/// Bytes in a piece: well below what gRPC libraries take unasked.
const PIECE: usize = 256 << 10;

/// Where the sending stands.
struct Sending {
    backup: BackupToSend,
    /// The next file, and the one that is open.
    next: usize,
    open: Option<(String, File)>,
    begun: bool,
}

/// The manifest, then every file. The copy is removed when the stream is dropped.
pub(super) fn stream(backup: BackupToSend) -> impl Stream<Item = Result<DownloadBackupResponse, Status>> {
    let sending = Sending { backup, next: 0, open: None, begun: false };
    futures_util::stream::try_unfold(sending, |mut sending| async move {
        let kind = sending.step().await.map_err(|error| {
            tracing::error!(%error, "a backup that is being sent cannot be read");
            Error::new(Reason::Internal, "the backup could not be read; the server's log says why")
        })?;
        Ok(kind.map(|kind| (DownloadBackupResponse { kind: Some(kind) }, sending)))
    })
}

impl Sending {
    async fn step(&mut self) -> io::Result<Option<Kind>> {
        if !self.begun {
            self.begun = true;
            let files = self.backup.files.iter();
            let files = files.map(|(name, bytes)| BackupFile { name: name.clone(), bytes: *bytes }).collect();
            return Ok(Some(Kind::Manifest(BackupManifest { rows: self.backup.rows, files })));
        }
        loop {
            if let Some((name, file)) = &mut self.open {
                let mut piece = BytesMut::with_capacity(PIECE);
                if file.read_buf(&mut piece).await? > 0 {
                    let data: Bytes = piece.freeze();
                    return Ok(Some(Kind::Piece(BackupPiece { file: name.clone(), data })));
                }
                self.open = None;
            }
            let Some((name, _)) = self.backup.files.get(self.next) else { return Ok(None) };
            self.open = Some((name.clone(), File::open(self.backup.path(name)).await?));
            self.next += 1;
        }
    }
}
