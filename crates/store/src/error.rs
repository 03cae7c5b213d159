//! What can go wrong.

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the directory.
    #[error("store {dir} is in use by another process")]
    InUse {
        /// The directory.
        dir: String,
    },
    /// The disk refuses (full, read-only, gone). Nothing of the batch is acknowledged; later batches may succeed.
    #[error("store {dir}: {source}")]
    Io {
        /// The directory.
        dir: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A record that was good when written does not match its checksum.
    #[error("store {dir}: record {key} is corrupt")]
    Corrupt {
        /// The directory.
        dir: String,
        /// The key, printable.
        key: String,
    },
    /// Key, value or batch over the limits.
    #[error("record too large: {0} bytes")]
    TooLarge(usize),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}
