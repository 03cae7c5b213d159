//! What is in the files of a container: in memory while it is small, else on this machine's disk, in a file without a name that goes
//! with its last reader.

use super::files::{FileError, Files};
use bytes::Bytes;
use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// What a container's small files and their names may take, in bytes.
pub(super) const MEMORY: u64 = 8 << 20;
/// What its large files may take, in bytes.
pub(super) const DISK: u64 = 4 << 30;
/// How many large files it may have: each is an open file of this process.
const LARGE: u64 = 64;
/// A file of more bytes is large, and whatever does not fit into the memory any more.
pub(super) const SMALL: usize = 1 << 20;
/// What is read as a whole at most.
const WHOLE: u64 = 8 << 20;
/// Bytes of a piece that is read.
const PIECE: usize = 256 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// What a container may still write.
#[derive(Debug)]
pub(super) struct Room {
    memory: AtomicU64,
    disk: AtomicU64,
    large: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            memory: MEMORY.into(),
            disk: DISK.into(),
            large: LARGE.into(),
        }
    }
}

#[cfg(test)]
impl Room {
    pub(super) fn of(memory: u64, disk: u64) -> Self {
        Self {
            memory: memory.into(),
            disk: disk.into(),
            ..Self::default()
        }
    }
}

fn take(left: &AtomicU64, amount: u64) -> Result<(), FileError> {
    let less = |left: u64| left.checked_sub(amount);
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    taken.map(drop).map_err(|_| FileError::Full)
}

/// Room that something takes as long as it is there.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    memory: u64,
    disk: u64,
    large: u64,
}

impl Taken {
    pub(super) fn nothing(room: &Arc<Room>) -> Self {
        Self {
            room: Arc::clone(room),
            memory: 0,
            disk: 0,
            large: 0,
        }
    }

    pub(super) fn memory(&mut self, amount: usize) -> Result<(), FileError> {
        take(&self.room.memory, amount as u64)?;
        self.memory += amount as u64;
        Ok(())
    }

    fn disk(&mut self, amount: usize) -> Result<(), FileError> {
        take(&self.room.disk, amount as u64)?;
        self.disk += amount as u64;
        Ok(())
    }

    /// What was in memory is a large file now.
    fn moved_to_disk(&mut self) -> Result<(), FileError> {
        take(&self.room.large, 1)?;
        self.large += 1;
        take(&self.room.disk, self.memory)?;
        self.disk += self.memory;
        let memory = std::mem::take(&mut self.memory);
        self.room.memory.fetch_add(memory, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.memory.fetch_add(self.memory, Ordering::Relaxed);
        self.room.disk.fetch_add(self.disk, Ordering::Relaxed);
        self.room.large.fetch_add(self.large, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Bytes),
    Disk(Arc<File>, u64),
    /// `/dev/zero`.
    Zeros,
}

/// What is in a file. Clones share it; it stays as it is whatever becomes of the file.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    place: Place,
    _taken: Option<Arc<Taken>>,
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            place: Place::Memory(bytes.into()),
            _taken: None,
        }
    }
}

impl Content {
    /// Zeros without end.
    pub(super) fn zeros() -> Self {
        Self {
            place: Place::Zeros,
            _taken: None,
        }
    }

    /// Bytes of it; `None`: it has no end.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.place {
            Place::Memory(bytes) => Some(bytes.len() as u64),
            Place::Disk(_, length) => Some(*length),
            Place::Zeros => None,
        }
    }

    /// Some of the bytes from `at` on; none at the end.
    pub(crate) async fn piece(&self, at: u64) -> io::Result<Bytes> {
        match &self.place {
            Place::Memory(bytes) => {
                let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(from..bytes.len().min(from + PIECE)))
            }
            Place::Disk(file, _) => {
                let file = Arc::clone(file);
                let reading = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; PIECE];
                    let count = file.read_at(&mut piece, at)?;
                    piece.truncate(count);
                    io::Result::Ok(Bytes::from(piece))
                });
                reading.await.map_err(io::Error::other)?
            }
            Place::Zeros => Ok(Bytes::from_static(&ZEROS)),
        }
    }

    /// All of it, when that is not much.
    pub(crate) async fn whole(&self) -> Result<Vec<u8>, FileError> {
        if self.length().is_none_or(|length| length > WHOLE) {
            return Err(FileError::TooLarge);
        }
        let mut all = Vec::new();
        loop {
            let piece = self.piece(all.len() as u64).await;
            let piece = piece.map_err(|_| FileError::Unreadable)?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }

    /// It as an input.
    pub(super) fn reader(self) -> Box<dyn AsyncRead + Send + Unpin> {
        if let Place::Memory(bytes) = self.place {
            return Box::new(io::Cursor::new(bytes));
        }
        let (mut writer, reader) = tokio::io::duplex(PIECE);
        // Ends with the content or with its reader.
        tokio::spawn(async move {
            let mut at = 0;
            while let Ok(piece) = self.piece(at).await
                && !piece.is_empty()
                && writer.write_all(&piece).await.is_ok()
            {
                at += piece.len() as u64;
            }
        });
        Box::new(reader)
    }
}

fn nameless_file() -> io::Result<File> {
    let (process, random) = (std::process::id(), fastrand::u64(..));
    let path = std::env::temp_dir().join(format!("yurt-container-{process}-{random:016x}"));
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A file that is being written. With its shutdown it has what was written; without, it stays empty.
#[derive(Debug)]
pub(crate) struct Draft {
    files: Files,
    /// `None`: what is written is forgotten.
    path: Option<String>,
    taken: Taken,
    held: Vec<u8>,
    disk: Option<tokio::fs::File>,
    length: u64,
}

impl Draft {
    pub(super) fn new(files: &Files, path: Option<String>) -> Self {
        Self {
            taken: Taken::nothing(files.room()),
            files: files.clone(),
            path,
            held: Vec::new(),
            disk: None,
            length: 0,
        }
    }

    /// What was held goes to the disk: a write of a megabyte into the page cache, for which no other thread is asked.
    fn spill(&mut self) -> io::Result<()> {
        self.taken.moved_to_disk()?;
        let mut file = nameless_file()?;
        file.write_all(&std::mem::take(&mut self.held))?;
        self.disk = Some(tokio::fs::File::from_std(file));
        Ok(())
    }
}

impl AsyncWrite for Draft {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let draft = &mut *self;
        if draft.path.is_none() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let held = draft.disk.is_none()
            && draft.held.len() + bytes.len() <= SMALL
            && draft.taken.memory(bytes.len()).is_ok();
        if held {
            draft.held.extend_from_slice(bytes);
        } else if draft.disk.is_none() {
            draft.spill()?;
        }
        let count = match &mut draft.disk {
            None => bytes.len(),
            Some(file) => {
                let left = draft.taken.room.disk.load(Ordering::Relaxed);
                let fits = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                if fits == 0 && !bytes.is_empty() {
                    return Poll::Ready(Err(FileError::Full.into()));
                }
                let count = ready!(Pin::new(file).poll_write(context, &bytes[..fits]))?;
                draft.taken.disk(count)?;
                count
            }
        };
        draft.length += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.disk {
            Some(file) => Pin::new(file).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        let draft = &mut *self;
        let Some(path) = draft.path.take() else {
            return Poll::Ready(Ok(()));
        };
        let place = match draft.disk.take() {
            None => Place::Memory(std::mem::take(&mut draft.held).into()),
            Some(file) => {
                let file = file.try_into_std();
                let file = file.map_err(|_| io::Error::other("a file is still being written"))?;
                Place::Disk(Arc::new(file), draft.length)
            }
        };
        let nothing = Taken::nothing(draft.files.room());
        let taken = std::mem::replace(&mut draft.taken, nothing);
        let content = Content {
            place,
            _taken: Some(Arc::new(taken)),
        };
        Poll::Ready(Ok(draft.files.put(&path, content)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pieces(content: &Content) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = content.piece(all.len() as u64).await.unwrap();
            if piece.is_empty() {
                return all;
            }
            all.extend_from_slice(&piece);
        }
    }

    #[tokio::test]
    async fn what_is_large_is_on_the_disk_and_the_same() {
        let files = Files::default();
        for length in [0, 1, SMALL, SMALL + 1, 3 * SMALL + 7] {
            let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
                .take(length)
                .collect();
            let mut draft = Draft::new(&files, Some("/a".into()));
            for part in bytes.chunks(100_000) {
                draft.write_all(part).await.unwrap();
            }
            draft.shutdown().await.unwrap();
            let content = files.get("/a").unwrap().unwrap();
            assert_eq!(content.length(), Some(length as u64));
            let on_disk = matches!(content.place, Place::Disk(..));
            assert_eq!(on_disk, length > SMALL);
            assert!(pieces(&content).await == bytes && content.whole().await.unwrap() == bytes);
        }
    }

    #[tokio::test]
    async fn room_that_was_taken_comes_back() {
        let room = Arc::new(Room {
            memory: 100.into(),
            disk: (2 * SMALL as u64).into(),
            large: 1.into(),
        });
        let files = Files::within(Arc::clone(&room));
        let write = async |path: &str, length: usize| {
            let mut draft = Draft::new(&files, Some(path.into()));
            draft.write_all(&vec![7; length]).await?;
            draft.shutdown().await
        };
        let full = |result: io::Result<()>| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(error.to_string(), "No space left on device");
        };
        write("/a", 90).await.unwrap();
        write("/b", 9).await.unwrap();
        full(write("/c", 20).await);
        files.remove("/b");
        full(write("/c", 2 * SMALL + 1).await);
        write("/c", SMALL + 1).await.unwrap();
        full(write("/d", SMALL + 1).await);
        files.remove("/c");
        write("/d", 2 * SMALL).await.unwrap();
        let left = [&room.memory, &room.disk, &room.large].map(|left| left.load(Ordering::Relaxed));
        assert_eq!(left, [100 - 92 - 2, 0, 0], "of what is there only");
    }
}
