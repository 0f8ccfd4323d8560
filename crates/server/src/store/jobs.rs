//! Jobs in the database: the request, and the log from which everything else is folded.

use std::collections::BTreeMap;

use ferry_core::{
    finding::Finding,
    id::{JobId, VmId},
    job::Figures,
    job_text::JobText,
    migration::{JobAction, LogEvent, Phase, answer, attempt, phase},
};
use sqlx::{Row as _, Sqlite, Transaction, sqlite::SqliteRow};

use super::{
    Store, StoreError,
    job::{Created, CreatedMany, HostName, JobRecord, LogEntry, LogRow, NewJob, Restarted},
    json, parsed, to_json,
};

impl Store {
    /// Stores a job in the queue, unless another open job moves the same VM.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn create_job(&self, job: &NewJob) -> Result<Created, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(other) = mover(&mut transaction, job.vm).await? {
            return Ok(Created::Busy(other));
        }
        let id = insert(&mut transaction, job).await?;
        transaction.commit().await?;
        Ok(Created::Job(id))
    }

    /// Stores a job together with its parts, or nothing if another job moves one of their VMs. Returns the parent's
    /// number, and those of `children` in their order.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn create_jobs(&self, parent: &NewJob, children: &[NewJob]) -> Result<CreatedMany, StoreError> {
        let mut transaction = self.begin().await?;
        for child in children {
            if let Some(other) = mover(&mut transaction, child.vm).await? {
                return Ok(CreatedMany::Busy(child.vm, other));
            }
        }
        let parent = insert(&mut transaction, parent).await?;
        let mut ids = Vec::with_capacity(children.len());
        for child in children {
            ids.push(insert(&mut transaction, &NewJob { parent: Some(parent), ..child.clone() }).await?);
        }
        transaction.commit().await?;
        Ok(CreatedMany::Jobs(parent, ids))
    }

    /// Lets a queued job begin its next attempt. `None`: the job is no longer queued. The change is on disk when this
    /// returns.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn admit(&self, job: JobId, now_ms: u64) -> Result<Option<Vec<LogEvent>>, StoreError> {
        let mut transaction = self.begin().await?;
        let mut log = log_in(&mut transaction, job).await?;
        if phase(&log) != Phase::Queued {
            return Ok(None);
        }
        let opening = [LogEvent::Admitted, LogEvent::AttemptStarted { attempt: attempt(&log) + 1 }];
        for event in &opening {
            write_line(&mut transaction, job, now_ms, &LogEntry::Event(event.clone())).await?;
        }
        transaction.commit().await?;
        log.extend(opening);
        Ok(Some(log))
    }

    /// Puts a job that ended without success back into the queue, with the plan of its next attempt.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn restart(&self, job: JobId, plan: &str, by: &str, now_ms: u64) -> Result<Restarted, StoreError> {
        let mut transaction = self.begin().await?;
        let log = log_in(&mut transaction, job).await?;
        if answer(JobAction::Restart, &log, false).is_err() {
            return Ok(Restarted::Not(log));
        }
        let vm: String = sqlx::query_scalar("SELECT vm FROM job WHERE id = $1")
            .bind(job.0 as i64)
            .fetch_one(&mut *transaction)
            .await?;
        let vm = vm.parse().map_err(|error| StoreError::Content { what: "vm", detail: format!("{error}") })?;
        if let Some(other) = mover(&mut transaction, vm).await? {
            return Ok(Restarted::Busy(other));
        }
        sqlx::query("UPDATE job SET plan = $2, figures = NULL WHERE id = $1")
            .bind(job.0 as i64)
            .bind(plan)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO open_job (job) VALUES ($1)").bind(job.0 as i64).execute(&mut *transaction).await?;
        let note = LogEntry::Note(JobText::AttemptAsked { by: by.to_owned() });
        for entry in [note, LogEntry::Event(LogEvent::Accepted)] {
            write_line(&mut transaction, job, now_ms, &entry).await?;
        }
        transaction.commit().await?;
        Ok(Restarted::Waits)
    }

    /// A job with its log, both as of the same moment.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn job_with_log(&self, job: JobId) -> Result<Option<(JobRecord, Vec<LogRow>)>, StoreError> {
        Ok(self.with_logs("id BETWEEN $1 AND $2", [job.0 as i64; 2], 1).await?.pop())
    }

    /// The parts of a job, oldest first, each with its log, all as of the same moment.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn children(&self, parent: JobId) -> Result<Vec<(JobRecord, Vec<LogRow>)>, StoreError> {
        self.with_logs("parent = $1 AND id > $2 ORDER BY id", [parent.0 as i64, 0], u32::MAX).await
    }

    /// The jobs that the condition `which` selects, with its two values and an order. Each comes with its log, all as
    /// of the same moment.
    async fn with_logs(
        &self,
        which: &'static str,
        values: [i64; 2],
        limit: u32,
    ) -> Result<Vec<(JobRecord, Vec<LogRow>)>, StoreError> {
        let which = format!("FROM job WHERE {which} LIMIT $3");
        let [first, second] = values;
        // All reads of one transaction see the same state of the database.
        let mut transaction = self.readers.begin().await?;
        let jobs = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT * {which}")))
            .bind(first)
            .bind(second)
            .bind(i64::from(limit))
            .fetch_all(&mut *transaction)
            .await?;
        let lines = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT job, at_ms, event, note FROM job_log WHERE job IN (SELECT id {which}) ORDER BY job, line"
        )))
        .bind(first)
        .bind(second)
        .bind(i64::from(limit))
        .fetch_all(&mut *transaction)
        .await?;
        let mut logs: BTreeMap<i64, Vec<LogRow>> = BTreeMap::new();
        for line in &lines {
            logs.entry(line.try_get("job")?).or_default().push(log_row(line)?);
        }
        let with_log = |row| {
            let record = record(row)?;
            let log = logs.remove(&(record.id.0 as i64)).unwrap_or_default();
            Ok((record, log))
        };
        jobs.iter().map(with_log).collect()
    }

    /// Removes jobs that ended before `before_ms`, and returns how many. Their numbers are not used again.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn forget_jobs(&self, before_ms: u64) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        // A parent is removed with the last of its parts. The newest job is kept, because the next number follows from
        // it.
        const OLD: &str = "SELECT id FROM job WHERE accepted_at_ms < $1
            AND id NOT IN (SELECT job FROM open_job) AND id < (SELECT MAX(id) FROM job)
            AND id NOT IN (SELECT parent FROM job WHERE parent IS NOT NULL)
            AND COALESCE((SELECT MAX(at_ms) FROM job_log WHERE job = job.id), 0) < $1";
        sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM job_log WHERE job IN ({OLD})")))
            .bind(before_ms as i64)
            .execute(&mut *transaction)
            .await?;
        let removed = sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM job WHERE id IN ({OLD})")))
            .bind(before_ms as i64)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(removed.rows_affected())
    }

    /// Appends to a job's log. The entries are on disk when this returns.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn append(&self, job: JobId, entries: &[LogEntry], now_ms: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for entry in entries {
            write_line(&mut transaction, job, now_ms, entry).await?;
        }
        let log = log_in(&mut transaction, job).await?;
        if phase(&log).ended() {
            sqlx::query("DELETE FROM open_job WHERE job = $1").bind(job.0 as i64).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// A job's log, oldest line first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn log(&self, job: JobId) -> Result<Vec<LogRow>, StoreError> {
        let rows = sqlx::query("SELECT at_ms, event, note FROM job_log WHERE job = $1 ORDER BY line")
            .bind(job.0 as i64)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(log_row).collect()
    }

    /// The newest jobs that were accepted at `since_ms` or later, newest first, each with its log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn jobs(&self, since_ms: u64, limit: u32) -> Result<Vec<(JobRecord, Vec<LogRow>)>, StoreError> {
        let since = since_ms.min(i64::MAX as u64) as i64;
        self.with_logs("accepted_at_ms >= $1 AND id > $2 ORDER BY id DESC", [since, 0], limit).await
    }

    /// Jobs with a number above `after` that were accepted at `since_ms` or later, oldest first, each with its log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn jobs_after(
        &self,
        after: JobId,
        since_ms: u64,
        limit: u32,
    ) -> Result<Vec<(JobRecord, Vec<LogRow>)>, StoreError> {
        let since = since_ms.min(i64::MAX as u64) as i64;
        self.with_logs("accepted_at_ms >= $1 AND id > $2 ORDER BY id", [since, after.0 as i64], limit).await
    }

    /// Open jobs, oldest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        let query = sqlx::query("SELECT job.* FROM job JOIN open_job ON open_job.job = job.id ORDER BY job.id");
        query.fetch_all(&self.readers).await?.iter().map(record).collect()
    }

    /// The VMs that open jobs move, each with its job.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn moving(&self) -> Result<BTreeMap<VmId, JobId>, StoreError> {
        Ok(self.open_jobs().await?.into_iter().map(|job| (job.job.vm, job.id)).collect())
    }

    /// Open jobs, oldest first, with the events of their logs.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn open_jobs_with_logs(&self) -> Result<Vec<(JobRecord, Vec<LogEvent>)>, StoreError> {
        let mut logs: BTreeMap<i64, Vec<LogEvent>> = BTreeMap::new();
        let lines = sqlx::query(
            "SELECT job_log.job, event FROM job_log JOIN open_job ON open_job.job = job_log.job
             WHERE event IS NOT NULL ORDER BY job_log.job, line",
        );
        for line in lines.fetch_all(&self.readers).await? {
            logs.entry(line.try_get("job")?).or_default().push(json("event", line.try_get("event")?)?);
        }
        let with_log = |record: JobRecord| {
            let log = logs.remove(&(record.id.0 as i64)).unwrap_or_default();
            (record, log)
        };
        Ok(self.open_jobs().await?.into_iter().map(with_log).collect())
    }

    /// Stores a job's plan.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_plan(&self, job: JobId, plan: &str) -> Result<(), StoreError> {
        self.put(job, "UPDATE job SET plan = $2 WHERE id = $1", plan).await
    }

    /// Stores the findings of a job's checks before its first change.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_findings(&self, job: JobId, findings: &[Finding]) -> Result<(), StoreError> {
        self.put(job, "UPDATE job SET findings = $2 WHERE id = $1", &to_json(&stored(findings))).await
    }

    /// Stores the measured figures of a job.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_figures(&self, job: JobId, figures: &Figures) -> Result<(), StoreError> {
        self.put(job, "UPDATE job SET figures = $2 WHERE id = $1", &to_json(figures)).await
    }

    async fn put(&self, job: JobId, update: &'static str, value: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(update).bind(job.0 as i64).bind(value).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Reserves a VM for a job. Returns the job that has the VM, which may be another one.
    ///
    /// # Errors
    /// Those of the database.
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

    /// Ends a job's reservation of its VM.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn unreserve(&self, job: JobId) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM reservation WHERE job = $1").bind(job.0 as i64).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// The open job that moves a VM.
async fn mover(transaction: &mut Transaction<'static, Sqlite>, vm: VmId) -> Result<Option<JobId>, StoreError> {
    let busy: Option<i64> =
        sqlx::query_scalar("SELECT job.id FROM job JOIN open_job ON open_job.job = job.id WHERE job.vm = $1")
            .bind(vm.to_string())
            .fetch_optional(&mut **transaction)
            .await?;
    Ok(busy.map(|job| JobId(job as u64)))
}

/// Inserts a job with its first log line. A parent job is not listed as open: its parts are.
async fn insert(transaction: &mut Transaction<'static, Sqlite>, job: &NewJob) -> Result<JobId, StoreError> {
    let id: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) + 1 FROM job").fetch_one(&mut **transaction).await?;
    sqlx::query(
        "INSERT INTO job (id, kind, vm, vm_name, source, source_name, destination, destination_name,
            requested_by, accepted_at_ms, plan, findings, parent)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
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
    .bind(to_json(&stored(&job.findings)))
    .bind(job.parent.map(|parent| parent.0 as i64))
    .execute(&mut **transaction)
    .await?;
    if !job.kind.is_parent() {
        sqlx::query("INSERT INTO open_job (job) VALUES ($1)").bind(id).execute(&mut **transaction).await?;
    }
    let id = JobId(id as u64);
    write_line(transaction, id, job.accepted_at_ms, &LogEntry::Event(LogEvent::Accepted)).await?;
    Ok(id)
}

/// The events of a job's log, as this transaction sees them.
async fn log_in(transaction: &mut Transaction<'static, Sqlite>, job: JobId) -> Result<Vec<LogEvent>, StoreError> {
    let rows = sqlx::query("SELECT event FROM job_log WHERE job = $1 AND event IS NOT NULL ORDER BY line")
        .bind(job.0 as i64)
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(|row| json("event", row.try_get("event")?)).collect()
}

fn log_row(row: &SqliteRow) -> Result<LogRow, StoreError> {
    let event: Option<String> = row.try_get("event")?;
    let entry = match event {
        Some(event) => LogEntry::Event(json("event", &event)?),
        None => {
            let note = row.try_get::<Option<String>, _>("note")?.unwrap_or_default();
            // Earlier versions stored its English.
            LogEntry::Note(serde_json::from_str(&note).unwrap_or(JobText::Text { text: note }))
        }
    };
    Ok(LogRow { at_ms: row.try_get::<i64, _>("at_ms")? as u64, entry })
}

async fn write_line(
    transaction: &mut Transaction<'static, Sqlite>,
    job: JobId,
    at_ms: u64,
    entry: &LogEntry,
) -> Result<(), StoreError> {
    let (event, note) = match entry {
        LogEntry::Event(event) => (Some(to_json(event)), None),
        LogEntry::Note(note) => (None, Some(to_json(note))),
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
            parent: row.try_get::<Option<i64>, _>("parent")?.map(|parent| JobId(parent as u64)),
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

/// Findings as they are stored: without sentences.
fn stored(findings: &[Finding]) -> Vec<impl serde::Serialize + use<>> {
    findings.iter().map(Finding::stored).collect()
}

#[cfg(test)]
mod tests {
    use ferry_core::{id::HostId, job::JobKind, migration::Step};
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn logs_hold_no_sentences_and_those_of_the_version_before_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_small(&folder.path().join("ferry.db"), None).await;
        let host = HostName { id: HostId(Uuid::nil()), name: "kvm1".into() };
        let job = NewJob {
            kind: JobKind::Live,
            parent: None,
            vm: VmId(Uuid::nil()),
            vm_name: "web01".into(),
            source: host.clone(),
            destination: host,
            by: "admin".into(),
            accepted_at_ms: 1,
            plan: "{}".into(),
            findings: Vec::new(),
        };
        let Created::Job(job) = store.create_job(&job).await.expect("stored") else { panic!("nobody else") };
        for (line, event, note) in [
            (2, Some(r#"{"event":"failed","step":"reserve","message":"Job 4 has reserved VM web01"}"#), None),
            (3, None, Some("admin asked to try again now")),
        ] {
            let row = sqlx::query("INSERT INTO job_log (job, line, at_ms, event, note) VALUES ($1, $2, 5, $3, $4)");
            let row = row.bind(job.0 as i64).bind(line).bind(event).bind(note);
            row.execute(&store.writer).await.expect("as the version before stores it");
        }
        let why = JobText::ReservedBy { job: JobId(4), vm: "web01".into() };
        let note = JobText::RetryAsked { by: "admin".into() };
        let new =
            [LogEntry::Event(LogEvent::Failed { step: Step::Reserve, why: why.clone() }), LogEntry::Note(note.clone())];
        store.append(job, &new, 6).await.expect("stored");

        let text = |sentence: &JobText| JobText::Text { text: sentence.to_string() };
        let log: Vec<_> = store.log(job).await.expect("read").into_iter().map(|row| row.entry).collect();
        let old =
            [LogEntry::Event(LogEvent::Failed { step: Step::Reserve, why: text(&why) }), LogEntry::Note(text(&note))];
        assert_eq!(log[1..], [old, new].concat());
        let stored: Vec<String> = sqlx::query_scalar("SELECT COALESCE(event, note) FROM job_log WHERE at_ms = 6")
            .fetch_all(&store.readers)
            .await
            .expect("read");
        assert!(stored.iter().all(|text| !text.contains("has reserved") && !text.contains("asked to")), "{stored:?}");
    }
}
