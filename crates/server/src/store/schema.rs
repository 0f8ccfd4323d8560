//! The database's tables, as steps from one schema version to the next. The SQL also works with PostgreSQL.

/// `MIGRATIONS[n]` leads from schema version n to n + 1.
pub(super) const MIGRATIONS: &[&[&str]] = &[FIRST, JOBS_IN_A_QUEUE, STORAGE_LOCATIONS, TRANSFER, MIGRATION_NETWORKS];

const MIGRATION_NETWORKS: &[&str] = &[
    // Subnets in order of preference, with a comma between two.
    "ALTER TABLE host ADD COLUMN migration_networks TEXT NOT NULL DEFAULT ''",
];

const TRANSFER: &[&str] = &[
    "ALTER TABLE host ADD COLUMN performance TEXT NOT NULL DEFAULT 'compression'",
    // Bytes per second; null: no limit.
    "ALTER TABLE host ADD COLUMN memory_rate_limit BIGINT",
    "ALTER TABLE host ADD COLUMN storage_rate_limit BIGINT",
];

const STORAGE_LOCATIONS: &[&str] = &[
    // location is JSON and is compared as text; the place numbers record the order in which locations were added.
    "CREATE TABLE storage_location (
        host TEXT NOT NULL, location TEXT NOT NULL, place BIGINT NOT NULL, PRIMARY KEY (host, location))",
];

const JOBS_IN_A_QUEUE: &[&str] = &[
    "ALTER TABLE host ADD COLUMN live_limit BIGINT NOT NULL DEFAULT 2",
    "ALTER TABLE host ADD COLUMN storage_limit BIGINT NOT NULL DEFAULT 2",
    // 1: nothing is placed on the host.
    "ALTER TABLE host ADD COLUMN maintenance BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE job ADD COLUMN parent BIGINT",
    "CREATE INDEX job_parent ON job (parent)",
    "CREATE INDEX job_accepted ON job (accepted_at_ms)",
    // The current epoch: one row.
    "CREATE TABLE life (epoch BIGINT NOT NULL)",
];

const FIRST: &[&str] = &[
    "CREATE TABLE token (hash TEXT PRIMARY KEY, name TEXT NOT NULL)",
    "CREATE TABLE host (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, address TEXT NOT NULL, pin TEXT NOT NULL UNIQUE,
        machine_id TEXT NOT NULL UNIQUE, hypervisor_uuid TEXT NOT NULL UNIQUE)",
    // unc is the text of the share's source, whatever its kind. unc_key decides whether two sources are the same: it is
    // a UNC path in lower case, since SMB ignores case.
    "CREATE TABLE share (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, unc TEXT NOT NULL, unc_key TEXT NOT NULL UNIQUE)",
    // plan, findings and figures are JSON: facts of the job that are never searched.
    "CREATE TABLE job (
        id BIGINT PRIMARY KEY, kind TEXT NOT NULL, vm TEXT NOT NULL, vm_name TEXT NOT NULL,
        source TEXT NOT NULL, source_name TEXT NOT NULL, destination TEXT NOT NULL, destination_name TEXT NOT NULL,
        requested_by TEXT NOT NULL, accepted_at_ms BIGINT NOT NULL, plan TEXT NOT NULL,
        findings TEXT NOT NULL, figures TEXT)",
    // A line is either an event (JSON), from which the job's phase is folded, or a note for people.
    "CREATE TABLE job_log (
        job BIGINT NOT NULL, line BIGINT NOT NULL, at_ms BIGINT NOT NULL, event TEXT, note TEXT,
        PRIMARY KEY (job, line))",
    // An index of the jobs whose log has not ended. The transaction that appends the end also removes the row.
    "CREATE TABLE open_job (job BIGINT PRIMARY KEY)",
    "CREATE TABLE reservation (vm TEXT PRIMARY KEY, job BIGINT NOT NULL)",
    // The first answer to each idempotency key; status is null while the request is in progress.
    "CREATE TABLE answer (
        key TEXT PRIMARY KEY, request_hash TEXT NOT NULL, at_ms BIGINT NOT NULL, status BIGINT, body TEXT)",
];
