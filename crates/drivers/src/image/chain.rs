//! Which files an image needs besides itself.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use super::header::header;

/// Limit of a chain's length: more than exists in practice, and an end for chains with a cycle.
const CHAIN_MAX: usize = 256;

/// The files that an image needs besides itself, according to the headers: those below it and its data files. An image
/// that does not exist needs none.
///
/// # Errors
/// The file system's errors; [`io::ErrorKind::InvalidData`] for a chain with a cycle, or a broken header.
pub fn below(image: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut top = image.to_owned();
    for _ in 0..CHAIN_MAX {
        let header = match header(&top) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        found.extend(header.data_file.as_deref().and_then(|name| file_named(name, &top)));
        let Some(next) = header.backing.as_deref().and_then(|name| file_named(name, &top)) else { return Ok(found) };
        found.push(next.clone());
        if header.backing_format.as_deref() == Some("raw") {
            // The content of a raw image belongs to the guest, whatever it looks like.
            return Ok(found);
        }
        top = next;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "images lie below one another in a circle"))
}

/// The file that the header of `image` means by a name; `None` if the name does not mean a file.
fn file_named(name: &str, image: &Path) -> Option<PathBuf> {
    let name = match name.strip_prefix("json:") {
        Some(json) => in_json(json)?,
        None => name.strip_prefix("file:").unwrap_or(name).to_owned(),
    };
    let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    if name.is_empty() || is_protocol {
        return None;
    }
    let joined = image.parent().unwrap_or(Path::new("/")).join(name);
    // Behind a symbolic link, `..` does not mean the preceding component of the path.
    if joined.components().any(|part| part == Component::ParentDir)
        && let (Some(Ok(folder)), Some(name)) = (joined.parent().map(Path::canonicalize), joined.file_name())
    {
        return Some(folder.join(name));
    }
    let mut plain = PathBuf::new();
    for part in joined.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    Some(plain)
}

/// The file's name in QEMU's JSON form, for images that a path alone does not describe:
/// `{"driver":"qcow2","file":{"driver":"file","filename":"/x"}}`.
fn in_json(json: &str) -> Option<String> {
    let (_, rest) = json.split_once("filename\"")?;
    let mut letters = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.chars();
    let mut name = String::new();
    loop {
        match letters.next()? {
            '"' => return Some(name),
            '\\' => name.push(letters.next()?),
            letter => name.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixtures::qemu_img;

    #[test]
    fn what_lies_below_an_image_is_found_by_the_headers() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("d")).expect("made");
        let path = |name: &str| folder.path().join(name);
        let text = |name: &str| path(name).display().to_string();
        let make = |name: &str, base: &str, format: &str| {
            qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", base, &text(name)]);
        };
        qemu_img(&["create", "-q", "-f", "qcow2", &text("base.qcow2"), "8M"]);
        make("d/middle.qcow2", "../base.qcow2", "qcow2");
        make("top.qcow2", &text("d/middle.qcow2"), "qcow2");
        assert_eq!(below(&path("top.qcow2")).expect("read"), [path("d/middle.qcow2"), path("base.qcow2")]);
        assert_eq!(below(&path("base.qcow2")).expect("read"), Vec::<PathBuf>::new());
        assert_eq!(below(&path("none.qcow2")).expect("it is not there"), Vec::<PathBuf>::new());

        // The content of a raw image belongs to the guest, and may look like a header.
        make("over-raw.qcow2", &text("top.qcow2"), "raw");
        assert_eq!(below(&path("over-raw.qcow2")).expect("read"), [path("top.qcow2")]);
        let json = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
            text("base.qcow2")
        );
        make("json.qcow2", &json, "qcow2");
        assert_eq!(below(&path("json.qcow2")).expect("read"), [path("base.qcow2")]);

        let data = format!("data_file={}", text("data.raw"));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, &text("with-data.qcow2"), "8M"]);
        assert_eq!(below(&path("with-data.qcow2")).expect("read"), [path("data.raw")]);
        // A cycle ends with an error.
        qemu_img(&["rebase", "-q", "-u", "-F", "qcow2", "-b", &text("top.qcow2"), &text("base.qcow2")]);
        assert_eq!(below(&path("top.qcow2")).expect_err("a circle").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_name_in_a_header_that_means_no_file_is_none() {
        let image = Path::new("/a/b/top.qcow2");
        for (name, expected) in [
            ("base.raw", Some("/a/b/base.raw")),
            ("../x/./base.raw", Some("/a/x/base.raw")),
            ("/c/base.raw", Some("/c/base.raw")),
            ("file:/c/base.raw", Some("/c/base.raw")),
            ("./odd:name", Some("/a/b/odd:name")),
            ("nbd://host/x", None),
            ("rbd:pool/x", None),
            ("", None),
            ("json:{\"driver\":\"nbd\"}", None),
            ("json:{\"file.filename\": \"/c/a\\\"b\"}", Some("/c/a\"b")),
        ] {
            assert_eq!(file_named(name, image), expected.map(PathBuf::from), "{name}");
        }
    }
}
