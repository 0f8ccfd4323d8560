//! Jobs: what was asked, and the log that everything else is folded from.

use ferry_core::{
    finding::Finding,
    id::{HostId, JobId, VmId},
    job::{Figures, MoveKind},
    migration::{LogEvent, phase},
};
use sqlx::{Row as _, Sqlite, Transaction, sqlite::SqliteRow};

use super::{Store, StoreError, json, parsed, to_json};

/// A host as a job remembers it: the name outlives the host's removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// Its id.
    pub id: HostId,
    /// Its name when the job was accepted.
    pub name: String,
}

/// What a job is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// What it does.
    pub kind: MoveKind,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// From where.
    pub source: HostName,
    /// To where.
    pub destination: HostName,
    /// Who asked.
    pub by: String,
    /// When. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// What the saga needs to know to go on after a restart; JSON that only it reads.
    pub plan: String,
    /// What was found before it was accepted.
    pub findings: Vec<Finding>,
}

/// A job as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub job: NewJob,
    /// What it took, as soon as that is known.
    pub figures: Option<Figures>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What it says.
    pub entry: LogEntry,
}

/// What a line of a job's log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// To the program: the phase is folded from these.
    Event(LogEvent),
    /// To people only.
    Note(String),
}

/// Whether a job was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was, with this number.
    Job(JobId),
    /// It was not: this job moves the VM.
    Busy(JobId),
}

impl Store {
    /// Stores a job that begins with `events`, unless another job that has not ended moves the same VM.
    ///
    /// # Errors
    /// The database's.
    pub async fn create_job(&self, job: &NewJob, events: &[LogEvent]) -> Result<Created, StoreError> {
        let mut transaction = self.begin().await?;
        let busy: Option<i64> =
            sqlx::query_scalar("SELECT job.id FROM job JOIN open_job ON open_job.job = job.id WHERE job.vm = $1")
                .bind(job.vm.to_string())
                .fetch_optional(&mut *transaction)
                .await?;
        if let Some(other) = busy {
            return Ok(Created::Busy(JobId(other as u64)));
        }
        let id: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) + 1 FROM job").fetch_one(&mut *transaction).await?;
        sqlx::query(
            "INSERT INTO job (id, kind, vm, vm_name, source, source_name, destination, destination_name,
                requested_by, accepted_at_ms, plan, findings)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(id)
        .bind(to_json(&job.kind))
        .bind(job.vm.to_string())
        .bind(&job.vm_name)
        .bind(job.source.id.to_string())
        .bind(&job.source.name)
        .bind(job.destination.id.to_string())
        .bind(&job.destination.name)
        .bind(&job.by)
        .bind(job.accepted_at_ms as i64)
        .bind(&job.plan)
        .bind(to_json(&job.findings))
        .execute(&mut *transaction)
        .await?;
        sqlx::query("INSERT INTO open_job (job) VALUES ($1)").bind(id).execute(&mut *transaction).await?;
        let id = JobId(id as u64);
        for event in events {
            write_line(&mut transaction, id, job.accepted_at_ms, &LogEntry::Event(event.clone())).await?;
        }
        transaction.commit().await?;
        Ok(Created::Job(id))
    }

    /// Appends to a job's log. On the disk when it returns.
    ///
    /// # Errors
    /// The database's.
    pub async fn append(&self, job: JobId, entries: &[LogEntry], now_ms: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for entry in entries {
            write_line(&mut transaction, job, now_ms, entry).await?;
        }
        let rows = sqlx::query("SELECT event FROM job_log WHERE job = $1 AND event IS NOT NULL ORDER BY line")
            .bind(job.0 as i64)
            .fetch_all(&mut *transaction)
            .await?;
        let log: Vec<LogEvent> =
            rows.iter().map(|row| json("event", row.try_get("event")?)).collect::<Result<_, _>>()?;
        if phase(&log).ended() {
            sqlx::query("DELETE FROM open_job WHERE job = $1").bind(job.0 as i64).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// A job's log, oldest line first.
    ///
    /// # Errors
    /// The database's.
    pub async fn log(&self, job: JobId) -> Result<Vec<LogRow>, StoreError> {
        let rows = sqlx::query("SELECT at_ms, event, note FROM job_log WHERE job = $1 ORDER BY line")
            .bind(job.0 as i64)
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| {
                let event: Option<String> = row.try_get("event")?;
                let entry = match event {
                    Some(event) => LogEntry::Event(json("event", &event)?),
                    None => LogEntry::Note(row.try_get::<Option<String>, _>("note")?.unwrap_or_default()),
                };
                Ok(LogRow { at_ms: row.try_get::<i64, _>("at_ms")? as u64, entry })
            })
            .collect()
    }

    /// One job.
    ///
    /// # Errors
    /// The database's.
    pub async fn job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError> {
        let query = sqlx::query("SELECT * FROM job WHERE id = $1").bind(job.0 as i64);
        query.fetch_optional(&self.readers).await?.as_ref().map(record).transpose()
    }

    /// The newest jobs, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn jobs(&self, limit: u32) -> Result<Vec<JobRecord>, StoreError> {
        let query = sqlx::query("SELECT * FROM job ORDER BY id DESC LIMIT $1").bind(i64::from(limit));
        query.fetch_all(&self.readers).await?.iter().map(record).collect()
    }

    /// Jobs that have not ended, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        let query = sqlx::query("SELECT job.* FROM job JOIN open_job ON open_job.job = job.id ORDER BY job.id");
        query.fetch_all(&self.readers).await?.iter().map(record).collect()
    }

    /// Keeps what the saga must know from now on.
    ///
    /// # Errors
    /// The database's.
    pub async fn put_plan(&self, job: JobId, plan: &str) -> Result<(), StoreError> {
        self.put(job, "UPDATE job SET plan = $2 WHERE id = $1", plan).await
    }

    /// Keeps what a job found before its first change.
    ///
    /// # Errors
    /// The database's.
    pub async fn put_findings(&self, job: JobId, findings: &[Finding]) -> Result<(), StoreError> {
        self.put(job, "UPDATE job SET findings = $2 WHERE id = $1", &to_json(&findings)).await
    }

    /// Keeps what a job took.
    ///
    /// # Errors
    /// The database's.
    pub async fn put_figures(&self, job: JobId, figures: &Figures) -> Result<(), StoreError> {
        self.put(job, "UPDATE job SET figures = $2 WHERE id = $1", &to_json(figures)).await
    }

    async fn put(&self, job: JobId, update: &'static str, value: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(update).bind(job.0 as i64).bind(value).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Takes a VM for a job; the answer is the job that has it, which may be another.
    ///
    /// # Errors
    /// The database's.
    pub async fn reserve(&self, vm: VmId, job: JobId) -> Result<JobId, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO reservation (vm, job) VALUES ($1, $2) ON CONFLICT (vm) DO NOTHING")
            .bind(vm.to_string())
            .bind(job.0 as i64)
            .execute(&mut *transaction)
            .await?;
        let holder: i64 = sqlx::query_scalar("SELECT job FROM reservation WHERE vm = $1")
            .bind(vm.to_string())
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(JobId(holder as u64))
    }

    /// Gives a job's VM free.
    ///
    /// # Errors
    /// The database's.
    pub async fn unreserve(&self, job: JobId) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM reservation WHERE job = $1").bind(job.0 as i64).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

async fn write_line(
    transaction: &mut Transaction<'static, Sqlite>,
    job: JobId,
    at_ms: u64,
    entry: &LogEntry,
) -> Result<(), StoreError> {
    let (event, note) = match entry {
        LogEntry::Event(event) => (Some(to_json(event)), None),
        LogEntry::Note(note) => (None, Some(note.as_str())),
    };
    sqlx::query(
        "INSERT INTO job_log (job, line, at_ms, event, note)
         VALUES ($1, (SELECT COALESCE(MAX(line), 0) + 1 FROM job_log WHERE job = $1), $2, $3, $4)",
    )
    .bind(job.0 as i64)
    .bind(at_ms as i64)
    .bind(event)
    .bind(note)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn record(row: &SqliteRow) -> Result<JobRecord, StoreError> {
    let host =
        |id, name| -> Result<HostName, StoreError> { Ok(HostName { id: parsed(row, id)?, name: row.try_get(name)? }) };
    let figures: Option<String> = row.try_get("figures")?;
    Ok(JobRecord {
        id: JobId(row.try_get::<i64, _>("id")? as u64),
        job: NewJob {
            kind: json("kind", row.try_get("kind")?)?,
            vm: parsed(row, "vm")?,
            vm_name: row.try_get("vm_name")?,
            source: host("source", "source_name")?,
            destination: host("destination", "destination_name")?,
            by: row.try_get("requested_by")?,
            accepted_at_ms: row.try_get::<i64, _>("accepted_at_ms")? as u64,
            plan: row.try_get("plan")?,
            findings: json("findings", row.try_get("findings")?)?,
        },
        figures: figures.as_deref().map(|figures| json("figures", figures)).transpose()?,
    })
}
