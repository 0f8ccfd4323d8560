//! Path ↔ location: finds the share whose mount contains a path; [`Roots`] opens what a location means, and nothing
//! outside of the places where files may be.

mod access;
mod directory;
mod listing;
mod roots;

use std::path::{Component, Path, PathBuf};

use ferry_core::{
    id::{HostId, ShareId},
    location::Location,
};

pub use access::QemuUser;
pub(crate) use access::qemu_user;
pub use directory::{Directory, RootsError};
pub use roots::{Roots, ShareRoot};

/// Where a host has mounted its shares. Pure: symbolic links are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    host: HostId,
    mounts: Vec<(ShareId, PathBuf)>,
}

impl Places {
    /// A host's shares, with the directories under which their content appears.
    pub fn new(host: HostId, mounts: Vec<(ShareId, PathBuf)>) -> Self {
        Self { host, mounts }
    }

    /// The location of a path: on the share with the innermost mount that contains it, otherwise on this host.
    pub fn location(&self, path: &Path) -> Location {
        let share = self
            .mounts
            .iter()
            .filter_map(|(share, mount)| {
                Some((
                    mount.components().count(),
                    *share,
                    plain(path)?.strip_prefix(mount).ok()?.components().collect::<PathBuf>(),
                ))
            })
            .max_by_key(|(depth, ..)| *depth);
        match share {
            Some((_, share, inside)) => Location::Share { share, path: inside.display().to_string() },
            None => Location::Local { host: self.host, path: path.display().to_string() },
        }
    }

    /// The directories of the shares.
    pub fn mounts(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().map(|(_, mount)| mount.as_path())
    }

    /// The path of a location on this host; `None` if the share is not mounted here, the file is on another host, or
    /// the location leads out of its share.
    pub fn path(&self, location: &Location) -> Option<PathBuf> {
        match location {
            Location::Share { share, path } => {
                let inside = Path::new(path);
                let stays = inside.components().all(|part| matches!(part, Component::Normal(_)));
                stays.then(|| self.mount(*share).map(|mount| mount.join(inside))).flatten()
            }
            Location::Local { host, path } => (*host == self.host).then(|| PathBuf::from(path)),
        }
    }

    /// The directory of a share.
    pub fn mount(&self, share: ShareId) -> Option<&Path> {
        self.mounts.iter().find(|(id, _)| *id == share).map(|(_, mount)| mount.as_path())
    }
}

/// The path, if it is absolute and does not contain `..`.
fn plain(path: &Path) -> Option<&Path> {
    let climbs = path.components().any(|part| matches!(part, Component::ParentDir | Component::CurDir));
    (path.is_absolute() && !climbs).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const HOST: HostId = HostId(Uuid::from_u128(1));
    const OUTER: ShareId = ShareId(Uuid::from_u128(2));
    const INNER: ShareId = ShareId(Uuid::from_u128(3));

    fn places() -> Places {
        Places::new(HOST, vec![(OUTER, "/srv/ferry/a".into()), (INNER, "/srv/ferry/a/deep".into())])
    }

    #[test]
    fn the_closest_mount_holds_a_path() {
        let on = |share, path: &str| Location::Share { share, path: path.into() };
        let local = |path: &str| Location::Local { host: HOST, path: path.into() };
        for (path, location) in [
            ("/srv/ferry/a/x.raw", on(OUTER, "x.raw")),
            ("/srv/ferry/a/deep/x.raw", on(INNER, "x.raw")),
            ("/srv/ferry/ab/x.raw", local("/srv/ferry/ab/x.raw")),
            ("/srv/ferry/a/../../etc/shadow", local("/srv/ferry/a/../../etc/shadow")),
            ("relative", local("relative")),
        ] {
            assert_eq!(places().location(Path::new(path)), location, "{path}");
        }
        assert_eq!(places().mount(INNER), Some(Path::new("/srv/ferry/a/deep")));
    }

    #[test]
    fn a_location_elsewhere_has_no_path_here() {
        let other = HostId(Uuid::from_u128(9));
        for location in [
            Location::Local { host: other, path: "/x".into() },
            Location::Share { share: ShareId(Uuid::from_u128(9)), path: "x".into() },
            Location::Share { share: OUTER, path: "../x".into() },
            Location::Share { share: OUTER, path: "/etc/shadow".into() },
        ] {
            assert_eq!(places().path(&location), None, "{location:?}");
        }
    }

    proptest! {
        #[test]
        fn a_path_goes_to_its_location_and_back(path in "(/srv/ferry/a|/srv/ferry/a/deep|/srv)(/[a-z.]{1,5}){1,4}") {
            let path = Path::new(&path);
            let back = places().path(&places().location(path));
            prop_assert_eq!(back.as_deref(), Some(path));
        }

        #[test]
        fn a_location_means_the_same_file_on_every_host(inside in "[a-z]{1,5}(/[a-z]{1,5}){0,3}") {
            let elsewhere = Places::new(HostId(Uuid::from_u128(8)), vec![(OUTER, "/mnt/other".into())]);
            let location = Location::Share { share: OUTER, path: inside };
            let path = elsewhere.path(&location).expect("on a share that is there");
            prop_assert_eq!(elsewhere.location(&path), location);
        }

        #[test]
        fn a_path_on_a_share_never_leads_out_of_it(path in "(/srv/ferry/a)?[a-z./]{0,30}") {
            if let Location::Share { path, .. } = places().location(Path::new(&path)) {
                prop_assert!(!Path::new(&path).components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
