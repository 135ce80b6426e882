//! The reference of all keys, written from the types that parse them.
//!
//! Descriptions are the doc comments of the fields, defaults those of the code; a test holds
//! `docs/configuration.md` equal to this.

use std::fmt::Write as _;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// The keys of one file as a part of a Markdown page.
pub fn reference<T: JsonSchema>(title: &str, introduction: &str) -> String {
    let schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    let definitions = schema
        .get("$defs")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let mut page = Page {
        definitions,
        text: format!("## {title}\n\n{introduction}\n"),
    };
    page.table(&schema, "", &Value::Null);
    page.text
}

struct Page {
    definitions: Map<String, Value>,
    text: String,
}

/// What a key holds.
enum Shape<'a> {
    /// One value, in words.
    Value(String),
    /// A table of its own.
    Table(&'a Value),
    /// Any number of tables.
    Tables(&'a Value),
}

impl Page {
    /// The keys of a table, then the tables below it. `defaults` is what the table has where the
    /// file does not mention it.
    fn table(&mut self, schema: &Value, path: &str, defaults: &Value) {
        let definitions = self.definitions.clone();
        let shapes = Shapes(&definitions);
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return;
        };
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let mut below = Vec::new();
        let mut rows = String::new();
        for (key, property) in properties {
            let described = description(property)
                .or_else(|| shapes.resolve(property).and_then(description))
                .unwrap_or_default();
            let value = defaults.get(key).or_else(|| property.get("default"));
            let default = match value {
                _ if required.contains(&key.as_str()) => "required".to_owned(),
                None | Some(Value::Null) => "none".to_owned(),
                Some(value) => format!("`{}`", toml_text(value)),
            };
            match shapes.of(property) {
                Shape::Value(kind) => {
                    let _ = writeln!(rows, "| `{key}` | {kind} | {default} | {described} |");
                }
                Shape::Table(inner) => below.push((key, inner, described, value, false)),
                Shape::Tables(inner) => below.push((key, inner, described, None, true)),
            }
        }
        if !rows.is_empty() {
            let _ = write!(
                self.text,
                "\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n{rows}"
            );
        }
        for (key, inner, described, value, many) in below {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let header = if many {
                format!("[[{path}]]")
            } else {
                format!("[{path}]")
            };
            let _ = write!(self.text, "\n### `{header}`\n\n{described}\n");
            self.table(inner, &path, value.unwrap_or(&Value::Null));
        }
    }
}

/// Looks through references.
struct Shapes<'a>(&'a Map<String, Value>);

impl<'a> Shapes<'a> {
    fn resolve(&self, schema: &'a Value) -> Option<&'a Value> {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            return self.0.get(name.rsplit('/').next()?);
        }
        // An optional value: the one alternative that is not null.
        let alternatives = schema.get("anyOf").and_then(Value::as_array)?;
        let other = alternatives
            .iter()
            .find(|one| one.get("type").and_then(Value::as_str) != Some("null"))?;
        Some(self.resolve(other).unwrap_or(other))
    }

    fn of(&self, schema: &'a Value) -> Shape<'a> {
        let schema = self.resolve(schema).unwrap_or(schema);
        if schema.get("properties").is_some() {
            return Shape::Table(schema);
        }
        if let Some(items) = schema.get("items") {
            return match self.of(items) {
                Shape::Value(kind) => Shape::Value(format!("list of {kind}")),
                Shape::Table(inner) | Shape::Tables(inner) => Shape::Tables(inner),
            };
        }
        Shape::Value(self.kind(schema))
    }

    fn kind(&self, schema: &Value) -> String {
        let words = self.words(schema);
        if !words.is_empty() {
            let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            return words.join(", ");
        }
        let name = match schema.get("type") {
            Some(Value::String(name)) => name.as_str(),
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(Value::as_str)
                .find(|name| *name != "null")
                .unwrap_or("value"),
            _ => "value",
        };
        match name {
            "boolean" => "`true` or `false`".into(),
            "integer" => "integer".into(),
            "number" => "number".into(),
            "string" => "text".into(),
            "object" => "table of texts".into(),
            other => other.into(),
        }
    }

    /// The words of an enumeration.
    fn words(&self, schema: &Value) -> Vec<String> {
        let list = |value: &Value| -> Vec<String> {
            value
                .as_array()
                .map(|words| {
                    words
                        .iter()
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect()
                })
                .unwrap_or_default()
        };
        if let Some(words) = schema.get("enum") {
            return list(words);
        }
        let alternatives = schema.get("oneOf").and_then(Value::as_array);
        alternatives
            .into_iter()
            .flatten()
            .flat_map(|one| match (one.get("const"), one.get("enum")) {
                (Some(Value::String(word)), _) => vec![word.clone()],
                (_, Some(words)) => list(words),
                _ => Vec::new(),
            })
            .collect()
    }
}

/// A doc comment on one line, without the links of its source.
fn description(schema: &Value) -> Option<String> {
    let text = schema.get("description")?.as_str()?;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(
        line.replace("[`", "`")
            .replace("`]", "`")
            .replace('|', "\\|"),
    )
}

/// A default as one would write it in the file.
fn toml_text(value: &Value) -> String {
    match value {
        Value::Array(entries) => {
            let entries: Vec<_> = entries.iter().map(toml_text).collect();
            format!("[{}]", entries.join(", "))
        }
        Value::Object(members) if members.is_empty() => "{}".into(),
        other => other.to_string(),
    }
}
