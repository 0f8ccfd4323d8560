//! Rewrites texts for users of this host's answers: files on shares get the names that users know instead of mount
//! points, and VMs their names.
//!
//! Applied where answers leave the agent, so that messages need not consider it. Text between backticks is meant for
//! this host's shell, and stays unchanged.

use std::path::PathBuf;

use ferry_core::{id::VmId, share_source::ShareSource};
use serde_json::Value;

/// Fields of answers that people read, in problems, findings and reports.
const FOR_PEOPLE: [&str; 9] = ["title", "detail", "object", "message", "fix", "error", "reason", "remarks", "trouble"];

/// What to replace.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextRewriter {
    /// Mount points, here or on the other host of a move, and the names that users know.
    pub(crate) mounts: Vec<(PathBuf, ShareSource)>,
    /// VMs by name.
    pub(crate) names: Vec<(VmId, String)>,
}

impl TextRewriter {
    /// Rewrites every text for people in a JSON answer.
    pub(crate) fn rewrite(&self, answer: &mut Value) {
        match answer {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::Object(_) if name == "says" => Self::words(value, &|word| self.text(word)),
                        // What a fix names stands in commands, for the most part.
                        Value::Object(_) if name == "fix_says" => Self::words(value, &|word| self.named(word)),
                        Value::String(text) if FOR_PEOPLE.contains(&name.as_str()) => *text = self.text(text),
                        Value::Array(items) if FOR_PEOPLE.contains(&name.as_str()) => {
                            for item in items {
                                if let Value::String(text) = item {
                                    *text = self.text(text);
                                }
                                self.rewrite(item);
                            }
                        }
                        Value::Object(_)
                        | Value::Array(_)
                        | Value::Null
                        | Value::Bool(_)
                        | Value::Number(_)
                        | Value::String(_) => self.rewrite(value),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.rewrite(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Rewrites the arguments of a sentence, and of the sentences in them.
    fn words(sentence: &mut Value, as_read: &dyn Fn(&str) -> String) {
        match sentence {
            Value::Object(fields) => {
                let parts = fields.iter_mut().filter(|(name, _)| !["key", "kind"].contains(&name.as_str()));
                parts.for_each(|(_, part)| Self::words(part, as_read));
            }
            Value::Array(parts) => parts.iter_mut().for_each(|part| Self::words(part, as_read)),
            Value::String(word) => *word = as_read(word),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Rewrites one text for users.
    pub(crate) fn text(&self, text: &str) -> String {
        // Every second piece is between backticks.
        let piece = |(index, piece): (usize, &str)| match index % 2 {
            0 => self.plain(piece),
            _ => self.named(piece),
        };
        text.split('`').enumerate().map(piece).collect::<Vec<_>>().join("`")
    }

    /// VMs are named in commands as well: libvirt and Ferry accept the name.
    fn named(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (vm, name)| text.replace(&vm.to_string(), name))
    }

    fn plain(&self, text: &str) -> String {
        let mut mounts: Vec<(String, &ShareSource)> =
            self.mounts.iter().map(|(mount, source)| (format!("{}/", mount.display()), source)).collect();
        // The innermost mount determines the name of a path.
        mounts.sort_by_key(|(mount, _)| std::cmp::Reverse(mount.len()));
        let mut rewritten = String::new();
        let mut rest = text;
        let mut before = None;
        while let Some(next) = rest.chars().next() {
            // A path starts where it does not continue another.
            let begins =
                next == '/' && !before.is_some_and(|before: char| before.is_alphanumeric() || "/._-".contains(before));
            let found = mounts
                .iter()
                .filter(|_| begins)
                .find_map(|(mount, source)| rest.strip_prefix(mount.as_str()).map(|inside| (inside, source)));
            match found {
                Some((inside, source)) => {
                    let end = inside.find(|each: char| each.is_whitespace() || "'\"`,;:()".contains(each));
                    let (path, after) = inside.split_at(end.unwrap_or(inside.len()));
                    rewritten += &source.written(path);
                    before = path.chars().last().or(Some('/'));
                    rest = after;
                }
                None => {
                    rewritten.push(next);
                    before = Some(next);
                    rest = &rest[next.len_utf8()..];
                }
            }
        }
        self.named(&rewritten)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn rewriter() -> TextRewriter {
        let source = |text: &str| text.parse::<ShareSource>().expect("well formed");
        TextRewriter {
            mounts: vec![
                ("/srv/ferry/a".into(), source(r"\\fs1.ferry.test\vms")),
                ("/srv/ferry/a/deep".into(), source("nfs://fs2.ferry.test/deep")),
                ("/run/shares-of-kvm2/a".into(), source(r"\\fs1.ferry.test\vms")),
            ],
            names: vec![(VmId(Uuid::from_u128(7)), "web01".to_owned())],
        }
    }

    #[test]
    fn files_on_shares_and_vms_are_told_as_users_call_them() {
        let vm = VmId(Uuid::from_u128(7));
        for (text, expected) in [
            ("/srv/ferry/a/db/x.raw is there already", r"\\fs1.ferry.test\vms\db\x.raw is there already".to_owned()),
            (
                "Could not open '/run/shares-of-kvm2/a/x.raw': no",
                r"Could not open '\\fs1.ferry.test\vms\x.raw': no".to_owned(),
            ),
            ("vda (/srv/ferry/a/deep/x.raw): locked", "vda (nfs://fs2.ferry.test/deep/x.raw): locked".to_owned()),
            ("/srv/ferry/ab/x.raw", "/srv/ferry/ab/x.raw".to_owned()),
            ("/data/srv/ferry/a/x.raw", "/data/srv/ferry/a/x.raw".to_owned()),
            ("/srv/ferry/a is no mount", "/srv/ferry/a is no mount".to_owned()),
            ("Look with `fuser -v /srv/ferry/a/x.raw`", "Look with `fuser -v /srv/ferry/a/x.raw`".to_owned()),
            ("größer als /srv/ferry/a/ü.raw", r"größer als \\fs1.ferry.test\vms\ü.raw".to_owned()),
        ] {
            assert_eq!(rewriter().text(text), expected);
        }
        assert_eq!(rewriter().text(&format!("Could not start VM {vm}: no")), "Could not start VM web01: no");
        assert_eq!(rewriter().text(&format!("Try `virsh start {vm}`")), "Try `virsh start web01`");
    }

    #[test]
    fn only_what_people_read_is_rewritten() {
        let path = "/srv/ferry/a/x.raw";
        let mut answer = serde_json::json!({
            "mounts": [{"share": "s", "path": path}],
            "error": path,
            "findings": [{
                "object": path, "message": path, "fix": "Nothing",
                "says": {"key": "file-is-there", "args": {"file": path, "why": {"key": "told", "args": {"text": path}}}},
                "fix_says": {"kind": "command", "key": "remove", "args": {"file": path}},
            }],
            "remarks": [path],
            "disks": [{"to": path}],
        });
        rewriter().rewrite(&mut answer);
        let shown = r"\\fs1.ferry.test\vms\x.raw";
        assert_eq!(answer["findings"][0]["fix_says"]["args"]["file"], path, "it stands in a command");
        assert_eq!(answer["mounts"][0]["path"], path);
        assert_eq!(answer["disks"][0]["to"], path);
        for text in [
            &answer["error"],
            &answer["findings"][0]["object"],
            &answer["findings"][0]["message"],
            &answer["findings"][0]["says"]["args"]["file"],
            &answer["findings"][0]["says"]["args"]["why"]["args"]["text"],
            &answer["remarks"][0],
        ] {
            assert_eq!(text, shown);
        }
    }
}
