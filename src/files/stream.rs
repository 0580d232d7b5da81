//! Reading a file while it is sent: block by block, on the blocking pool, one block at a time. It never holds more than the block
//! it was asked for, and never asks for one before it is wanted.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::disk::read_full;
use super::range::Span;
use super::reply::Piece;

/// The pieces of a body, some of them parts of a file.
#[derive(Debug)]
pub struct Reader {
    file: Content,
    pieces: VecDeque<Piece>,
    /// Bytes read at once.
    block: usize,
    disk: Arc<Semaphore>,
}

/// Where the parts are taken from.
#[derive(Debug)]
pub(super) enum Content {
    /// The disk.
    Open(Arc<File>),
    /// Memory, which they share.
    Here(Bytes),
}

impl Reader {
    pub(super) fn new(
        file: Content,
        pieces: Vec<Piece>,
        block: usize,
        disk: Arc<Semaphore>,
    ) -> Self {
        Self {
            file,
            pieces: pieces.into(),
            block: block.max(1),
            disk,
        }
    }

    /// The next block; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the disk fails, or the file has become shorter than it was: what was promised cannot be sent.
    ///
    /// # Cancel safety
    ///
    /// Not safe: a block that was being read is lost.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let span = match self.pieces.pop_front() {
            None => return Ok(None),
            Some(Piece::Text(text)) => return Ok(Some(text)),
            Some(Piece::File(span)) => span,
        };
        let file = match &self.file {
            Content::Open(file) => Arc::clone(file),
            Content::Here(bytes) => return Ok(Some(cut(bytes, span))),
        };
        let wanted = usize::try_from(span.length()).map_or(self.block, |len| len.min(self.block));
        let next = span.start.saturating_add(wanted as u64);
        if next < span.end {
            self.pieces.push_front(Piece::File(Span {
                start: next,
                end: span.end,
            }));
        }
        let block = on_disk(&self.disk, move || {
            let mut block = vec![0; wanted];
            let read = read_full(&file, span.start, &mut block)?;
            if read == wanted {
                Ok(block)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        })
        .await?;
        Ok(Some(block.into()))
    }
}

/// A part of what is in memory.
pub(super) fn cut(bytes: &Bytes, span: Span) -> Bytes {
    let [start, end] = [span.start, span.end]
        .map(|at| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len())));
    bytes.slice(start.min(end)..end)
}

/// Runs something that blocks where it may, when its turn comes.
pub(super) async fn on_disk<T: Send + 'static>(
    disk: &Arc<Semaphore>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // It is never closed. The permit goes along: a caller that leaves does not end what a stuck disk holds.
    let permit = Arc::clone(disk).acquire_owned().await;
    let done = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    done.await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(text: &[u8], pieces: Vec<Piece>) -> Reader {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, text).unwrap();
        Reader::new(
            Content::Open(Arc::new(file)),
            pieces,
            4,
            Arc::new(Semaphore::new(1)),
        )
    }

    async fn all(mut reader: Reader) -> io::Result<Vec<u8>> {
        let mut seen = Vec::new();
        while let Some(block) = reader.next().await? {
            assert!(block.len() <= 4, "a block is a block");
            seen.extend_from_slice(&block);
        }
        Ok(seen)
    }

    #[tokio::test]
    async fn the_pieces_come_in_order_and_in_blocks() {
        let pieces = vec![
            Piece::Text("<".into()),
            Piece::File(Span { start: 1, end: 9 }),
            Piece::Text("|".into()),
            Piece::File(Span { start: 0, end: 3 }),
            Piece::Text(">".into()),
        ];
        let seen = all(reader(b"0123456789", pieces)).await.unwrap();
        assert_eq!(seen, b"<12345678|012>");
    }

    #[tokio::test]
    async fn a_file_that_has_become_shorter_is_an_error() {
        let pieces = vec![Piece::File(Span { start: 0, end: 11 })];
        let error = all(reader(b"0123456789", pieces)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
