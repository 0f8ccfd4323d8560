//! The database: the only place with SQL. One writer (`BEGIN IMMEDIATE`), several readers.

mod answers;
mod inventory;
mod job;
mod jobs;
mod schema;
mod storage_locations;

use std::{path::Path, time::Duration};

use sqlx::{
    Connection as _, Row as _, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use thiserror::Error;

pub use answers::{Answer, Begun};
pub use inventory::{HostRecord, HostSettings, ShareRecord};
pub use job::{Created, CreatedMany, HostName, JobRecord, LogEntry, LogRow, NewJob, Restarted};

/// How many readers may use the database at the same time: the reads of an API call are short.
const READERS_MAX: u32 = 4;
/// How long a writer waits for another process (`ferry-server token`).
const BUSY_MAX: Duration = Duration::from_secs(5);

/// How long a request waits for a connection while the database is busy: longer than [`BUSY_MAX`].
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);

/// Why a database operation failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database's own error.
    #[error("The database failed")]
    Database(#[from] sqlx::Error),
    /// A name, key or path that must be unique already exists.
    #[error("The entry is already in the database")]
    Duplicate,
    /// Stored content cannot be read.
    #[error("The database holds {what} that this version cannot read: {detail}")]
    Content {
        /// The column.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A newer version of the program wrote the file.
    #[error("The database has schema version {found}; this program knows versions up to {known}")]
    Newer {
        /// The file's schema version.
        found: i64,
        /// The newest schema version that this program knows.
        known: i64,
    },
}

/// The open database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens the database file, creates it if it does not exist, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer version of the program wrote the file, which is then left unchanged.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(Self::options(path), ACQUIRE_WITHIN).await
    }

    fn options(path: &Path) -> SqliteConnectOptions {
        // FULL: an intent must be on disk before its side effect happens.
        SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_MAX)
    }

    async fn open_with(options: SqliteConnectOptions, acquire_within: Duration) -> Result<Self, StoreError> {
        let pool = |connections| {
            let pool = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(acquire_within);
            // SQLite itself ends a transaction that a full disk or an I/O error broke, but sqlx would consider it open
            // for ever.
            pool.before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        let readers = pool(READERS_MAX).connect_with(options).await?;
        let store = Self { writer, readers };
        store.migrate().await?;
        Ok(store)
    }

    /// Like [`Self::open`], but waits for a connection are short, and the file cannot grow beyond this number of pages,
    /// as on a full disk.
    #[cfg(test)]
    pub(crate) async fn open_small(path: &Path, pages: Option<u32>) -> Self {
        let options = Self::options(path);
        let options = match pages {
            Some(pages) => options.pragma("max_page_count", pages.to_string()),
            None => options,
        };
        Self::open_with(options, Duration::from_millis(200)).await.expect("a database")
    }

    /// Closes every connection; committed changes remain.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Takes the only writer until the returned value is dropped.
    #[cfg(test)]
    pub(crate) async fn occupy(&self) -> impl Sized + use<> {
        self.begin().await.expect("free")
    }

    /// The number of pages of the file.
    #[cfg(test)]
    pub(crate) async fn pages(&self) -> u32 {
        sqlx::query_scalar("PRAGMA page_count").fetch_one(&self.readers).await.expect("a number")
    }

    /// Removes all log lines that are written for people only.
    #[cfg(test)]
    pub(crate) async fn remove_notes(&self) {
        sqlx::query("DELETE FROM job_log WHERE note IS NOT NULL").execute(&self.writer).await.expect("removed");
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let known = schema::MIGRATIONS.len() as i64;
        let mut transaction = self.begin().await?;
        sqlx::query("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
            .execute(&mut *transaction)
            .await?;
        let found: Option<i64> =
            sqlx::query_scalar("SELECT MAX(version) FROM schema_version").fetch_one(&mut *transaction).await?;
        let found = found.unwrap_or(0);
        if found > known {
            return Err(StoreError::Newer { found, known });
        }
        for step in &schema::MIGRATIONS[found as usize..] {
            for statement in *step {
                sqlx::query(*statement).execute(&mut *transaction).await?;
            }
        }
        sqlx::query("DELETE FROM schema_version").execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO schema_version (version) VALUES ($1)").bind(known).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Returns the epoch of this run of the server. It is a time, so it is larger than every earlier epoch even if the
    /// database was lost and replaced by an older copy.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn next_epoch(&self, now_ms: u64) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let last: Option<i64> = sqlx::query_scalar("SELECT MAX(epoch) FROM life").fetch_one(&mut *transaction).await?;
        let epoch = now_ms.max(last.unwrap_or(0) as u64 + 1);
        sqlx::query("DELETE FROM life").execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO life (epoch) VALUES ($1)").bind(epoch as i64).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(epoch)
    }

    /// Replaces the token of this name with the one that has this hash.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_token(&self, name: &str, hash: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM token WHERE name = $1").bind(name).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO token (hash, name) VALUES ($1, $2)")
            .bind(hash)
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// The name of the token that has this hash.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn token_name(&self, hash: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query_scalar("SELECT name FROM token WHERE hash = $1").bind(hash);
        Ok(query.fetch_optional(&self.readers).await?)
    }

    /// Whether a token was ever created.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn has_tokens(&self) -> Result<bool, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM token").fetch_one(&self.readers).await?;
        Ok(count > 0)
    }
}

/// Turns a violated uniqueness constraint into [`StoreError::Duplicate`].
fn or_duplicate(error: sqlx::Error) -> StoreError {
    match error.as_database_error() {
        Some(database) if database.is_unique_violation() => StoreError::Duplicate,
        _ => StoreError::Database(error),
    }
}

/// Parses a text column.
fn parsed<T>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error: T::Err| StoreError::Content { what: column, detail: error.to_string() })
}

/// Parses a JSON column.
fn json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Content { what, detail: error.to_string() })
}

/// One of our own types as JSON.
fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("our types have text keys only")
}
