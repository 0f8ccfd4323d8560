//! Hosts and shares that an administrator added.

use ferry_core::{
    admission::Limits,
    id::{HostId, ShareId},
    network::MigrationNetworks,
    pin::Pin,
    share_source::ShareSource,
    transfer::{HostTransfer, RateLimits},
    units::ByteCount,
};
use sqlx::{Row as _, sqlite::SqliteRow};

use super::{Store, StoreError, or_duplicate, parsed};

/// A host that an administrator added. Its hardware and its VMs are never stored: its agent reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// `ADDRESS:PORT` of its agent.
    pub address: String,
    /// Its agent's public key.
    pub pin: Pin,
    /// Its machine id.
    pub machine_id: String,
    /// Its libvirt host UUID.
    pub hypervisor_uuid: String,
    /// The administrator's settings at the time when the record was read.
    pub settings: HostSettings,
}

/// An administrator's settings of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// How many moves it may take part in at the same time.
    pub limits: Limits,
    /// Whether it is in maintenance: nothing is placed on it.
    pub maintenance: bool,
    /// How the bytes of its moves travel.
    pub transfer: HostTransfer,
    /// The networks in which its moves travel.
    pub migration_networks: MigrationNetworks,
}

/// A share that an administrator added. The agents report where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRecord {
    /// Its id.
    pub id: ShareId,
    /// Its name.
    pub name: String,
    /// The storage that it refers to.
    pub source: ShareSource,
}

impl Store {
    /// Every host, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn hosts(&self) -> Result<Vec<HostRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM host ORDER BY name").fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                Ok(HostRecord {
                    id: parsed(row, "id")?,
                    name: row.try_get("name")?,
                    address: row.try_get("address")?,
                    pin: parsed(row, "pin")?,
                    machine_id: row.try_get("machine_id")?,
                    hypervisor_uuid: row.try_get("hypervisor_uuid")?,
                    settings: HostSettings {
                        limits: Limits {
                            live: row.try_get::<i64, _>("live_limit")? as u32,
                            storage: row.try_get::<i64, _>("storage_limit")? as u32,
                        },
                        maintenance: row.try_get::<i64, _>("maintenance")? != 0,
                        transfer: HostTransfer {
                            preset: parsed(row, "performance")?,
                            limits: RateLimits {
                                memory: rate(row, "memory_rate_limit")?,
                                storage: rate(row, "storage_rate_limit")?,
                            },
                        },
                        migration_networks: parsed(row, "migration_networks")?,
                    },
                })
            })
            .collect()
    }

    /// Adds a host.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] if the name, key, machine id or host UUID already exists.
    pub async fn add_host(&self, host: &HostRecord) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO host (id, name, address, pin, machine_id, hypervisor_uuid) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(host.id.to_string())
        .bind(&host.name)
        .bind(&host.address)
        .bind(host.pin.to_string())
        .bind(&host.machine_id)
        .bind(&host.hypervisor_uuid)
        .execute(&mut *transaction)
        .await
        .map_err(or_duplicate)?;
        Ok(transaction.commit().await?)
    }

    /// Stores an administrator's settings of a host.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_host_settings(&self, host: HostId, settings: HostSettings) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let HostSettings { limits, maintenance, transfer, migration_networks } = settings;
        let rate = |limit: Option<ByteCount>| limit.map(|limit| limit.0.cast_signed());
        sqlx::query(
            "UPDATE host SET live_limit = $2, storage_limit = $3, maintenance = $4, performance = $5,
             memory_rate_limit = $6, storage_rate_limit = $7, migration_networks = $8 WHERE id = $1",
        )
        .bind(host.to_string())
        .bind(i64::from(limits.live))
        .bind(i64::from(limits.storage))
        .bind(i64::from(maintenance))
        .bind(transfer.preset.name())
        .bind(rate(transfer.limits.memory))
        .bind(rate(transfer.limits.storage))
        .bind(migration_networks.to_string())
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Removes a host and the pin of its agent.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_host(&self, host: HostId) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM host WHERE id = $1").bind(host.to_string()).execute(&mut *transaction).await?;
        sqlx::query("DELETE FROM storage_location WHERE host = $1")
            .bind(host.to_string())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Every share, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn shares(&self) -> Result<Vec<ShareRecord>, StoreError> {
        let rows = sqlx::query("SELECT id, name, unc FROM share ORDER BY name").fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                Ok(ShareRecord { id: parsed(row, "id")?, name: row.try_get("name")?, source: parsed(row, "unc")? })
            })
            .collect()
    }

    /// Adds a share.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] if the name or source already exists.
    pub async fn add_share(&self, share: &ShareRecord) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO share (id, name, unc, unc_key) VALUES ($1, $2, $3, $4)")
            .bind(share.id.to_string())
            .bind(&share.name)
            .bind(share.source.to_string())
            .bind(share.source.key())
            .execute(&mut *transaction)
            .await
            .map_err(or_duplicate)?;
        Ok(transaction.commit().await?)
    }

    /// Removes a share.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_share(&self, share: ShareId) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM share WHERE id = $1").bind(share.to_string()).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// A limit in bytes per second; null means none.
fn rate(row: &SqliteRow, column: &'static str) -> Result<Option<ByteCount>, StoreError> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(|rate| ByteCount(rate.cast_unsigned())))
}
