//! Reads a crate as modules: its files, and which other files each of them names.
//!
//! Sources are read as tokens, so that comments, strings and macros do not mislead; types are unknown. A path refers to
//! the file that defines the named item: re-exports in a `mod.rs` or `lib.rs` are followed to their origin.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Limit of re-exports that are followed to find a definition.
const REEXPORTS_MAX: usize = 8;
/// Keywords that precede the name of a definition.
const DEFINES: [&str; 9] = ["fn", "struct", "enum", "trait", "const", "static", "type", "union", "macro_rules"];

/// A path in the source, without `::`.
type Names = Vec<String>;

/// One program or library: the modules below one root file, without those that are compiled only for tests.
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
    by_module: BTreeMap<Names, usize>,
}

/// A file of product code.
pub(crate) struct File {
    /// Its path in the workspace.
    pub(crate) path: String,
    /// Its module's path, without `crate`.
    pub(crate) module: Names,
    /// Its number of lines, without items that are compiled only for tests.
    pub(crate) lines: usize,
    children: BTreeSet<String>,
    defined: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths in code, each with the module that it is relative to, and its line.
    paths: Vec<Named>,
    /// Words in code, except in imports.
    words: BTreeSet<String>,
}

struct Import {
    /// Its name in this file; `*` for all items.
    name: String,
    at: Named,
    /// Other files may name it through this file.
    exported: bool,
}

#[derive(Clone)]
struct Named {
    module: Names,
    path: Names,
    line: usize,
}

/// One file names something that another defines.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    pub(crate) to: usize,
    pub(crate) line: usize,
    pub(crate) path: String,
}

impl Tree {
    /// Reads the modules below a root file; paths are reported relative to the folder `base`.
    pub(crate) fn read(base: &Path, root: &Path) -> Self {
        let mut tree = Self { files: Vec::new(), by_module: BTreeMap::new() };
        tree.read_file(base, root, Vec::new());
        tree
    }

    fn read_file(&mut self, base: &Path, path: &Path, module: Names) {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let tokens = text.parse::<TokenStream>().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut file = File {
            path: path.strip_prefix(base).expect("below the workspace").display().to_string(),
            module: module.clone(),
            lines: text.lines().count(),
            children: BTreeSet::new(),
            defined: BTreeSet::new(),
            imports: Vec::new(),
            paths: Vec::new(),
            words: BTreeSet::new(),
        };
        file.read(&tokens.into_iter().collect::<Vec<_>>(), &module);
        let children = file.children.clone();
        self.by_module.insert(module.clone(), self.files.len());
        self.files.push(file);
        for child in children {
            let file = file_of(path, &child);
            self.read_file(base, &file, [module.as_slice(), &[child]].concat());
        }
    }

    /// All other files that this one names, each once.
    pub(crate) fn edges(&self, from: usize) -> Vec<Edge> {
        let file = &self.files[from];
        let imports = file.imports.iter().filter(|import| {
            // A re-exported name that this file does not use is not a dependency of this file.
            !import.exported || file.words.contains(&import.name)
        });
        let named =
            imports.map(|import| (&import.at, import.name == "*")).chain(file.paths.iter().map(|at| (at, false)));
        let mut edges = BTreeMap::<usize, Edge>::new();
        for (at, all) in named {
            let Some((to, item)) = self.resolve(file, at) else { continue };
            // For a module that is imported by name, the paths that use it count.
            if to != from && (item.is_some() || all) {
                let edge = Edge { to, line: at.line, path: at.path.join("::") };
                edges.entry(to).or_insert(edge);
            }
        }
        edges.into_values().collect()
    }

    /// The file that defines the item in a path, and the item's first name there; none for items of other crates.
    fn resolve(&self, file: &File, at: &Named) -> Option<(usize, Option<String>)> {
        self.find(&self.absolute(file, at, 0)?, 0)
    }

    fn absolute(&self, file: &File, at: &Named, depth: usize) -> Option<Names> {
        let mut module = at.module.clone();
        let mut rest = at.path.as_slice();
        let mut relative = false;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => module.clear(),
                "self" => {}
                "super" => drop(module.pop()?),
                _ => break,
            }
            (relative, rest) = (true, after);
        }
        let first = rest.first();
        if relative || first.is_some_and(|first| module == file.module && file.children.contains(first)) {
            return Some([module.as_slice(), rest].concat());
        }
        let is_it =
            |import: &&Import| Some(&import.name) == first && import.at.module == module && import.at.path != at.path;
        let import = file.imports.iter().find(is_it).filter(|_| depth < REEXPORTS_MAX)?;
        let whole = self.absolute(file, &import.at, depth + 1)?;
        Some([whole.as_slice(), &rest[1..]].concat())
    }

    fn find(&self, absolute: &[String], depth: usize) -> Option<(usize, Option<String>)> {
        let known = (0..=absolute.len())
            .rev()
            .find_map(|length| self.by_module.get(&absolute[..length]).map(|index| (*index, &absolute[length..])));
        let (index, rest) = known?;
        let file = &self.files[index];
        let Some(item) = rest.first() else { return Some((index, None)) };
        let passed_on = |import: &&Import| {
            import.at.module == file.module && import.exported && (import.name == *item || import.name == "*")
        };
        if depth < REEXPORTS_MAX && !file.defined.contains(item) {
            for import in file.imports.iter().filter(passed_on) {
                let Some(mut whole) = self.absolute(file, &import.at, 0) else { continue };
                whole.extend(rest.iter().skip(usize::from(import.name != "*")).cloned());
                match self.find(&whole, depth + 1) {
                    Some((found, Some(name))) if import.name == "*" && !self.files[found].defined.contains(&name) => {}
                    Some(found) => return Some(found),
                    None => {}
                }
            }
        }
        Some((index, Some(item.clone())))
    }
}

impl File {
    fn read(&mut self, tokens: &[TokenTree], module: &Names) {
        let mut at = 0;
        while at < tokens.len() {
            at = match &tokens[at] {
                TokenTree::Punct(hash) if hash.as_char() == '#' && is_for_tests(tokens.get(at + 1)) => {
                    let end = end_of_item(tokens, at + 2);
                    let last = tokens[end.min(tokens.len()) - 1].span().end().line;
                    self.lines -= last + 1 - hash.span().start().line;
                    end
                }
                TokenTree::Ident(word) if word == "use" && !is_bound(tokens, at) => {
                    let end = tokens[at..].iter().position(is_punct(';')).map_or(tokens.len(), |length| at + length);
                    let exported = is_exported(tokens, at);
                    self.read_imports(&tokens[at + 1..end], module, &mut Vec::new(), exported);
                    end + 1
                }
                TokenTree::Ident(word) if word == "mod" => self.read_module(tokens, at, module),
                TokenTree::Ident(_) => self.read_path(tokens, at, module),
                TokenTree::Group(group) => {
                    self.read(&group.stream().into_iter().collect::<Vec<_>>(), module);
                    at + 1
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at + 1,
            };
        }
    }

    fn read_module(&mut self, tokens: &[TokenTree], at: usize, module: &Names) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else { return at + 1 };
        match tokens.get(at + 2) {
            Some(TokenTree::Group(body)) => {
                let inside = [module.as_slice(), &[name.to_string()]].concat();
                self.defined.insert(name.to_string());
                self.read(&body.stream().into_iter().collect::<Vec<_>>(), &inside);
            }
            _ => drop(self.children.insert(name.to_string())),
        }
        at + 3
    }

    fn read_path(&mut self, tokens: &[TokenTree], at: usize, module: &Names) -> usize {
        let line = tokens[at].span().start().line;
        let first = tokens[at].to_string();
        if at > 0 && DEFINES.iter().any(|word| tokens[at - 1].to_string() == *word) || is_macro(tokens, at) {
            self.defined.insert(first);
            return at + 1;
        }
        self.words.insert(first.clone());
        let (mut path, mut at) = (vec![first], at + 1);
        while is_separator(tokens, at)
            && let Some(TokenTree::Ident(name)) = tokens.get(at + 2)
        {
            path.push(name.to_string());
            at += 3;
        }
        if path.len() > 1 {
            self.paths.push(Named { module: module.clone(), path, line });
        }
        at
    }

    fn read_imports(&mut self, tokens: &[TokenTree], module: &Names, prefix: &mut Names, exported: bool) {
        for branch in tokens.split(is_punct(',')) {
            let depth = prefix.len();
            let mut name = None;
            let mut line = 0;
            let mut renamed = false;
            for token in branch {
                line = token.span().start().line;
                match token {
                    TokenTree::Ident(word) if word == "as" => renamed = true,
                    TokenTree::Ident(word) if renamed => name = Some(word.to_string()),
                    TokenTree::Ident(word) => {
                        prefix.push(word.to_string());
                        name = Some(word.to_string());
                    }
                    TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                        let inner = group.stream().into_iter().collect::<Vec<_>>();
                        self.read_imports(&inner, module, prefix, exported);
                        name = None;
                    }
                    TokenTree::Punct(star) if star.as_char() == '*' => name = Some("*".to_owned()),
                    TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
            if let Some(name) = name {
                let mut path = prefix.clone();
                let itself = path.last().is_some_and(|last| last == "self") && path.len() > 1;
                if itself {
                    path.pop();
                }
                let name = if itself && name == "self" { path[path.len() - 1].clone() } else { name };
                self.imports.push(Import { name, at: Named { module: module.clone(), path, line }, exported });
            }
            prefix.truncate(depth);
        }
    }
}

/// The file of the module `name` in the file `parent`.
fn file_of(parent: &Path, name: &str) -> PathBuf {
    let stem = parent.file_stem().and_then(|stem| stem.to_str()).expect("a source's name is UTF-8");
    let folder = parent.parent().expect("a file lies in a folder");
    let folder = if ["lib", "main", "mod"].contains(&stem) { folder.to_owned() } else { folder.join(stem) };
    let (file, inside) = (folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs"));
    if file.is_file() { file } else { inside }
}

fn is_for_tests(attribute: Option<&TokenTree>) -> bool {
    matches!(attribute, Some(TokenTree::Group(group)) if group.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// The index after the item at `at`, including its attributes.
fn end_of_item(tokens: &[TokenTree], at: usize) -> usize {
    let is_import = tokens[at..].iter().take(3).any(|token| token.to_string() == "use");
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => !is_import && group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() == ';',
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    };
    tokens[at..].iter().position(is_end).map_or(tokens.len(), |length| at + length + 1)
}

fn is_punct(mark: char) -> impl Fn(&TokenTree) -> bool {
    move |token| matches!(token, TokenTree::Punct(found) if found.as_char() == mark)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    tokens.get(at).is_some_and(is_punct(':')) && tokens.get(at + 1).is_some_and(is_punct(':'))
}

/// `use<..>` in a type is not an import.
fn is_bound(tokens: &[TokenTree], at: usize) -> bool {
    tokens.get(at + 1).is_some_and(is_punct('<'))
}

fn is_macro(tokens: &[TokenTree], at: usize) -> bool {
    at > 1 && is_punct('!')(&tokens[at - 1]) && tokens[at - 2].to_string() == "macro_rules"
}

fn is_exported(tokens: &[TokenTree], at: usize) -> bool {
    let is_public = |token: &TokenTree| token.to_string() == "pub";
    match tokens[..at].split_last() {
        Some((TokenTree::Group(_), before)) => before.last().is_some_and(is_public),
        Some((last, _)) => is_public(last),
        None => false,
    }
}
