//! A local folder as a share: for tests, and to measure what a server adds.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::share::{Entry, Operation, Share, Watch};

/// A folder of this host. It blocks the calling thread, and cannot be watched.
#[derive(Clone, Debug)]
pub struct LocalShare {
    root: PathBuf,
    name: String,
}

impl LocalShare {
    /// The existing folder `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), name: root.display().to_string() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

fn done<'a, T: Send + 'a>(outcome: io::Result<T>) -> Operation<'a, T> {
    Box::pin(std::future::ready(outcome))
}

fn unless_missing<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Share for LocalShare {
    fn name(&self) -> &str {
        &self.name
    }

    fn make(&self, folder: &str) -> Operation<'_, ()> {
        done(fs::create_dir_all(self.at(folder)))
    }

    fn list(&self, folder: &str) -> Operation<'_, Vec<Entry>> {
        let entry = |entry: fs::DirEntry| {
            let facts = unless_missing(entry.metadata())?;
            Ok(facts.map(|facts| Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_folder: facts.is_dir(),
                bytes: if facts.is_dir() { 0 } else { facts.len() },
                written: facts.modified().ok(),
            }))
        };
        done(fs::read_dir(self.at(folder)).and_then(|entries| {
            entries.filter_map(|found| found.and_then(entry).transpose()).collect::<io::Result<Vec<_>>>()
        }))
    }

    fn publish(&self, path: &str, bytes: Bytes) -> Operation<'_, ()> {
        let at = self.at(path);
        let unpublished = at.with_extension("tmp");
        done(fs::write(&unpublished, bytes).and_then(|()| fs::rename(&unpublished, at)))
    }

    fn read(&self, path: &str, bytes_max: usize) -> Operation<'_, Option<Vec<u8>>> {
        let read = || {
            let mut file = fs::File::open(self.at(path))?;
            let length = file.metadata()?.len();
            if length > bytes_max as u64 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is {length} bytes long")));
            }
            let mut bytes = Vec::with_capacity(length as usize);
            io::Read::read_to_end(&mut file, &mut bytes)?;
            Ok(bytes)
        };
        done(unless_missing(read()))
    }

    fn delete(&self, path: &str) -> Operation<'_, ()> {
        done(unless_missing(fs::remove_file(self.at(path))).map(drop))
    }

    fn remove(&self, folder: &str) -> Operation<'_, ()> {
        done(unless_missing(fs::remove_dir(self.at(folder))).map(drop))
    }

    fn watch(&self, _folder: &str) -> Operation<'_, Box<dyn Watch>> {
        done(Err(io::ErrorKind::Unsupported.into()))
    }
}
