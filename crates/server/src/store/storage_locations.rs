//! The directories that are offered first for VM files on each host.

use std::collections::BTreeMap;

use ferry_core::{id::HostId, location::Location, place::STORAGE_LOCATIONS_MAX};
use sqlx::Row as _;

use super::{Store, StoreError, json, parsed, to_json};

impl Store {
    /// The storage locations of every host, in the order in which they were added.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn storage_locations(&self) -> Result<BTreeMap<HostId, Vec<Location>>, StoreError> {
        let query = sqlx::query("SELECT host, location FROM storage_location ORDER BY place");
        let mut locations: BTreeMap<HostId, Vec<Location>> = BTreeMap::new();
        for row in query.fetch_all(&self.readers).await? {
            let text: String = row.try_get("location")?;
            locations.entry(parsed(&row, "host")?).or_default().push(json("a storage location", &text)?);
        }
        Ok(locations)
    }

    /// Adds a storage location to a host. True: the host has it now, newly or from before. False: the host already has
    /// [`STORAGE_LOCATIONS_MAX`] others, and nothing is changed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn add_storage_location(&self, host: HostId, location: &Location) -> Result<bool, StoreError> {
        let (host, location) = (host.to_string(), to_json(location));
        let mut transaction = self.begin().await?;
        let others: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM storage_location WHERE host = $1 AND location <> $2")
                .bind(&host)
                .bind(&location)
                .fetch_one(&mut *transaction)
                .await?;
        if others >= STORAGE_LOCATIONS_MAX as i64 {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO storage_location (host, location, place)
             VALUES ($1, $2, (SELECT COALESCE(MAX(place), 0) + 1 FROM storage_location))
             ON CONFLICT (host, location) DO NOTHING",
        )
        .bind(&host)
        .bind(&location)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Removes a storage location from a host. False: the host did not have it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_storage_location(&self, host: HostId, location: &Location) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let removed = sqlx::query("DELETE FROM storage_location WHERE host = $1 AND location = $2")
            .bind(host.to_string())
            .bind(to_json(location))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(removed.rows_affected() > 0)
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::id::ShareId;
    use uuid::Uuid;

    use super::*;

    fn local(host: HostId, path: &str) -> Location {
        Location::Local { host, path: path.to_owned() }
    }

    #[tokio::test]
    async fn they_keep_their_order_and_their_number_is_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ferry.db");
        let store = Store::open(&path).await.expect("opened");
        let (one, other) = (HostId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)));
        let share = Location::Share { share: ShareId(Uuid::from_u128(3)), path: "dir/sub".into() };
        assert!(store.add_storage_location(one, &share).await.expect("stored"));
        for number in 1..STORAGE_LOCATIONS_MAX {
            let location = local(one, &format!("/{}", STORAGE_LOCATIONS_MAX - number));
            assert!(store.add_storage_location(one, &location).await.expect("stored"), "{number}");
        }
        assert!(!store.add_storage_location(one, &local(one, "/full")).await.expect("answered"));
        assert!(store.add_storage_location(one, &share).await.expect("answered"), "it is there already");
        assert!(store.add_storage_location(other, &share).await.expect("stored"), "each host has its own");
        store.close().await;

        let store = Store::open(&path).await.expect("opened again");
        let locations = store.storage_locations().await.expect("read");
        assert_eq!(locations[&one].len(), STORAGE_LOCATIONS_MAX);
        assert_eq!((&locations[&one][0], &locations[&one][1]), (&share, &local(one, "/31")));
        assert!(store.remove_storage_location(one, &share).await.expect("removed"));
        assert!(!store.remove_storage_location(one, &share).await.expect("answered"));
        store.remove_host(one).await.expect("removed");
        let locations = store.storage_locations().await.expect("read");
        assert_eq!(locations.into_iter().collect::<Vec<_>>(), [(other, vec![share])]);
    }
}
