//! First answers to requests that carried an idempotency key.

use sqlx::Row as _;

use super::{Store, StoreError};

/// Answers are kept this long: a client that repeats a request does so within minutes.
const AGE_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: String,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nothing was: the caller is to work on the request now.
    New,
    /// The first request with this key is still being worked on.
    Working,
    /// It was answered.
    Answered(Answer),
    /// The key was used with another request.
    Other,
}

impl Store {
    /// Takes `key` for the request with this hash, if it is free. Forgets keys that are too old.
    ///
    /// # Errors
    /// The database's.
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

    /// Keeps the answer; `None` gives the key free again.
    ///
    /// # Errors
    /// The database's.
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

    /// Gives free the keys of requests that an earlier life of the server did not finish.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_unanswered(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM answer WHERE status IS NULL").execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}
