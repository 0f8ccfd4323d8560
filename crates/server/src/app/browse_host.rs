//! Lists the directories that a host offers for files, or the contents of one. The agent is asked each time.

use std::sync::Arc;

use ferry_core::{
    api::{
        problem::Title,
        server::{PlaceView, PlacesView},
    },
    location::Location,
    place::{OfferedPlace, written},
};

use super::App;
use crate::{failure::Failure, inventory::Host, preflight::places, store::ShareRecord};

pub(crate) async fn browse_host(
    app: &Arc<App>,
    reference: &str,
    location: Option<&str>,
) -> Result<PlacesView, Failure> {
    let title = Title::BrowseHost { host: reference.to_owned() };
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    let shares = app.store.shares().await?;
    let not_listed = |error| places::not_listed(&title, host.name(), &error);
    match location {
        None => {
            let offered = host.agent.places().await.map_err(not_listed)?;
            Ok(PlacesView::Offered { places: offered.into_iter().map(|one| view(app, &host, &shares, one)).collect() })
        }
        Some(text) => {
            let location = places::within_reach(&title, &host, &shares, text)?;
            let listing = host.agent.directory(&location).await.map_err(not_listed)?;
            let path = written(&location, &places::known(&shares));
            Ok(PlacesView::Directory { location, path, listing })
        }
    }
}

fn view(app: &App, host: &Host, shares: &[ShareRecord], offered: OfferedPlace) -> PlaceView {
    let path = written(&offered.location, &places::known(shares));
    let Location::Share { share, .. } = offered.location else {
        return PlaceView { path, share: None, also_on: Vec::new(), offered };
    };
    let has_it = |other: &&Arc<Host>| other.record.id != host.record.id && other.seen().has_share(share);
    let also_on = app.inventory.hosts().iter().filter(has_it).map(|other| other.name().to_owned()).collect();
    // A share that was removed from the inventory in the meantime has no name.
    let name = shares.iter().find(|known| known.id == share).map(|known| known.name.clone());
    PlaceView { path, share: Some(name.unwrap_or_else(|| share.to_string())), also_on, offered }
}
