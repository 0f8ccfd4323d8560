//! Path ↔ location: which share's mount holds a path.

use std::path::{Component, Path, PathBuf};

use ferry_core::{
    id::{HostId, ShareId},
    location::Location,
};

/// Where a host has mounted its shares. Pure: symlinks are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    host: HostId,
    mounts: Vec<(ShareId, PathBuf)>,
}

impl Places {
    /// A host's shares with the directories under which their content appears.
    pub fn new(host: HostId, mounts: Vec<(ShareId, PathBuf)>) -> Self {
        Self { host, mounts }
    }

    /// The location of a path: on the share whose mount holds it most closely, else on this host.
    pub fn location(&self, path: &Path) -> Location {
        let share = self
            .mounts
            .iter()
            .filter_map(|(share, mount)| Some((mount.components().count(), *share, plain(path)?.strip_prefix(mount).ok()?.to_owned())))
            .max_by_key(|(depth, ..)| *depth);
        match share {
            Some((_, share, inside)) => Location::Share { share, path: inside.display().to_string() },
            None => Location::Local { host: self.host, path: path.display().to_string() },
        }
    }

    /// The directory of a share.
    pub fn mount(&self, share: ShareId) -> Option<&Path> {
        self.mounts.iter().find(|(id, _)| *id == share).map(|(_, mount)| mount.as_path())
    }
}

/// The path if it is absolute and does not climb.
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

    proptest! {
        #[test]
        fn a_path_on_a_share_never_leads_out_of_it(path in "(/srv/ferry/a)?[a-z./]{0,30}") {
            if let Location::Share { path, .. } = places().location(Path::new(&path)) {
                prop_assert!(!Path::new(&path).components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
