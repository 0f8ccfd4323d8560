//! Stored answers to requests with an idempotency key.

use sqlx::Row as _;

use super::{Store, StoreError};

/// How long an answer is kept: clients repeat a request within minutes.
const AGE_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: String,
}

/// The state of an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The key was free: the caller now handles the request.
    New,
    /// The first request with this key is still in progress.
    Working,
    /// The request was answered.
    Answered(Answer),
    /// The key was used with a different request.
    Other,
}

impl Store {
    /// Claims `key` for the request with this hash, if the key is free. Deletes keys that are too old.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn begin_answer(&self, key: &str, request_hash: &str, now_ms: u64) -> Result<Begun, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM answer WHERE at_ms < $1")
            .bind(now_ms.saturating_sub(AGE_MAX_MS) as i64)
            .execute(&mut *transaction)
            .await?;
        let inserted = sqlx::query(
            "INSERT INTO answer (key, request_hash, at_ms) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING",
        )
        .bind(key)
        .bind(request_hash)
        .bind(now_ms as i64)
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 1 {
            transaction.commit().await?;
            return Ok(Begun::New);
        }
        let row = sqlx::query("SELECT request_hash, status, body FROM answer WHERE key = $1")
            .bind(key)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        if row.try_get::<String, _>("request_hash")? != request_hash {
            return Ok(Begun::Other);
        }
        let status: Option<i64> = row.try_get("status")?;
        let body: Option<String> = row.try_get("body")?;
        Ok(match (status, body) {
            (Some(status), Some(body)) => Begun::Answered(Answer { status: status as u16, body }),
            _ => Begun::Working,
        })
    }

    /// Stores the answer; `None` frees the key.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end_answer(&self, key: &str, answer: Option<&Answer>) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        match answer {
            Some(answer) => {
                sqlx::query("UPDATE answer SET status = $2, body = $3 WHERE key = $1")
                    .bind(key)
                    .bind(i64::from(answer.status))
                    .bind(&answer.body)
                    .execute(&mut *transaction)
                    .await?
            }
            None => sqlx::query("DELETE FROM answer WHERE key = $1").bind(key).execute(&mut *transaction).await?,
        };
        Ok(transaction.commit().await?)
    }

    /// Frees the keys of requests that an earlier run of the server did not finish.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn forget_unanswered(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM answer WHERE status IS NULL").execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}
