//! The files that make up one configuration, laid over each other, and where each key was set.
//!
//! Beside `NAME.toml` there may be a directory `NAME.toml.d`. Its `*.toml` files are laid over the
//! main file in the order of their names:
//!
//! - a table is merged with the one below, key by key;
//! - an array of tables is merged entry by entry: entries are the same if they have the same
//!   `name` or, where they have none, the same `uri`; others are added at the end;
//! - anything else replaces what is below, an empty array included.
//!
//! The directory and its files are trusted as the main file is, so the same checks of owner and
//! mode apply. An editor's backups do not end in `.toml` and are not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{ConfigError, LIMIT};
use crate::base::files::{self, FileError, Readers};

/// Most files in the directory.
const MOST_FILES: usize = 256;

/// Keys that tell the entries of an array of tables apart.
const IDENTITIES: [&str; 2] = ["name", "uri"];

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// From 1.
    pub line: usize,
}

/// One step from a table to what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A key of a table.
    Key(String),
    /// An entry of an array, from 0.
    Index(usize),
}

/// Several files as one.
#[derive(Debug)]
pub struct Layers {
    root: Node,
    /// The main file first, then those laid over it.
    pub files: Vec<Arc<Path>>,
}

/// A value and where it was set last.
#[derive(Debug)]
struct Node {
    place: Place,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Leaf(Value),
    Table(BTreeMap<String, Node>),
    Tables(Vec<Node>),
}

impl Layers {
    /// Reads the main file and what is laid over it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut layers = Self::file(path)?;
        let directory = drop_in_directory(path);
        if directory.exists() {
            for file in drop_ins(&directory)? {
                let over = Self::file(&file)?;
                layers.root.lay(over.root);
                layers.files.extend(over.files);
            }
        }
        Ok(layers)
    }

    fn file(path: &Path) -> Result<Self, ConfigError> {
        let bytes = files::read_checked(path, Readers::Group, LIMIT)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            ConfigError::Syntax {
                path: path.to_owned(),
                line: line_at(valid, valid.len()),
                problem: "the file is not UTF-8".into(),
            }
        })?;
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_at(text.as_bytes(), error.span().map_or(0, |span| span.start)),
            problem: super::one_line(error.message()),
        };
        let values: Table = text.parse().map_err(syntax)?;
        let spans = DeTable::parse(&text).map_err(syntax)?;
        let file: Arc<Path> = path.into();
        let source = Source {
            file: &file,
            text: &text,
        };
        let root = source.table(values, spans.get_ref(), 1);
        Ok(Self {
            root,
            files: vec![file],
        })
    }

    /// All of it as one table.
    pub fn value(&self) -> Value {
        self.root.value()
    }

    /// Where what `steps` lead to was set: its own place, or that of the table it is missing from.
    pub fn nearest(&self, steps: &[Step]) -> &Place {
        self.root.follow(steps).0
    }

    /// Where the value itself was set; `None` where no file has it.
    pub fn set_at(&self, steps: &[Step]) -> Option<&Place> {
        let (place, found) = self.root.follow(steps);
        found.then_some(place)
    }
}

/// The directory of drop-ins of a configuration file.
pub fn drop_in_directory(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".d");
    name.into()
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    files::check_directory(directory)?;
    let unreadable = |source| FileError::Unreadable {
        path: directory.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            found.push(path);
        }
    }
    if found.len() > MOST_FILES {
        return Err(unreadable(std::io::Error::other(format!(
            "it has more than {MOST_FILES} files"
        )))
        .into());
    }
    found.sort_unstable();
    Ok(found)
}

/// A file while it is taken apart.
struct Source<'a> {
    file: &'a Arc<Path>,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        Place {
            file: self.file.clone(),
            line: line_at(self.text.as_bytes(), offset),
        }
    }

    fn table(&self, values: Table, spans: &DeTable<'_>, line: usize) -> Node {
        let mut children = BTreeMap::new();
        for (key, value) in values {
            let span = spans
                .iter()
                .find(|(name, _)| name.get_ref().as_ref() == key.as_str());
            let child = match span {
                Some((name, span)) => self.node(value, span, name.span().start),
                // Both come from one text, so each key has its span.
                None => self.leaf(value, 0),
            };
            children.insert(key, child);
        }
        Node {
            place: Place {
                file: self.file.clone(),
                line,
            },
            content: Content::Table(children),
        }
    }

    fn node(&self, value: Value, span: &Spanned<DeValue<'_>>, key: usize) -> Node {
        match (value, span.get_ref()) {
            (Value::Table(values), DeValue::Table(spans)) => {
                // A header's span is the value's where there is one, else that of its key.
                let line = line_at(self.text.as_bytes(), key);
                self.table(values, spans, line)
            }
            (Value::Array(values), DeValue::Array(spans))
                if !values.is_empty() && values.iter().all(Value::is_table) =>
            {
                let entries = values
                    .into_iter()
                    .zip(spans.iter())
                    .map(|(value, span)| self.node(value, span, span.span().start))
                    .collect();
                Node {
                    place: self.place(key),
                    content: Content::Tables(entries),
                }
            }
            (value, _) => self.leaf(value, key),
        }
    }

    fn leaf(&self, value: Value, offset: usize) -> Node {
        Node {
            place: self.place(offset),
            content: Content::Leaf(value),
        }
    }
}

impl Node {
    /// Lays another over this one.
    fn lay(&mut self, over: Self) {
        match (&mut self.content, over.content) {
            (Content::Table(below), Content::Table(above)) => {
                for (key, child) in above {
                    match below.get_mut(&key) {
                        Some(known) => known.lay(child),
                        None => {
                            below.insert(key, child);
                        }
                    }
                }
            }
            (Content::Tables(below), Content::Tables(above)) => {
                for entry in above {
                    let same = entry.identity().and_then(|identity| {
                        below
                            .iter()
                            .position(|known| known.identity() == Some(identity))
                    });
                    match same.and_then(|index| below.get_mut(index)) {
                        Some(known) => known.lay(entry),
                        None => below.push(entry),
                    }
                }
            }
            (content, above) => {
                *content = above;
                self.place = over.place;
            }
        }
    }

    /// What tells an entry of an array from the others.
    fn identity(&self) -> Option<(&'static str, &str)> {
        let Content::Table(children) = &self.content else {
            return None;
        };
        IDENTITIES
            .into_iter()
            .find_map(|key| match &children.get(key)?.content {
                Content::Leaf(Value::String(text)) => Some((key, text.as_str())),
                _ => None,
            })
    }

    fn value(&self) -> Value {
        match &self.content {
            Content::Leaf(value) => value.clone(),
            Content::Table(children) => Value::Table(
                children
                    .iter()
                    .map(|(key, child)| (key.clone(), child.value()))
                    .collect(),
            ),
            Content::Tables(entries) => Value::Array(entries.iter().map(Self::value).collect()),
        }
    }

    /// As far as the steps lead, and whether that is all of them.
    fn follow(&self, steps: &[Step]) -> (&Place, bool) {
        let Some((step, rest)) = steps.split_first() else {
            return (&self.place, true);
        };
        let child = match (&self.content, step) {
            (Content::Table(children), Step::Key(key)) => children.get(key),
            (Content::Tables(entries), Step::Index(index)) => entries.get(*index),
            // A key within an array, where nobody knows of which entry.
            (Content::Tables(entries), Step::Key(_)) => {
                return entries
                    .first()
                    .map_or((&self.place, false), |first| first.follow(steps));
            }
            // A place within a plain array is that of the array.
            (Content::Leaf(Value::Array(_)), Step::Index(_)) => return (&self.place, true),
            _ => None,
        };
        match child {
            Some(child) => child.follow(rest),
            None => (&self.place, false),
        }
    }
}

fn line_at(text: &[u8], offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}
