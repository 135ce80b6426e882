//! JSON objects read strictly: what could be understood in two ways is refused.
//!
//! Refused are duplicate names at any depth, numbers that are not plain integers (`1.0`, `1e3`,
//! `-0`, anything beyond 64 bits), arrays, booleans, `null` where it was not asked for, and fields
//! nobody asked for: a reader takes the fields it knows out of an [`Object`] and then calls
//! [`Object::finish`].

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

/// Why an object was refused, with the field at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", prefix(field))]
pub struct FieldError {
    /// The field, dotted where nested; empty where the whole is malformed.
    pub field: String,
    /// What is wrong, as the end of a sentence.
    pub problem: String,
}

fn prefix(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!("{field}: ")
    }
}

impl FieldError {
    /// An error at `field`.
    pub fn at(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same error, seen from the object that has the field under `parent`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.field = if self.field.is_empty() {
            parent.to_owned()
        } else {
            format!("{parent}.{}", self.field)
        };
        self
    }
}

/// An object whose fields are taken out one by one.
#[derive(Debug, Default)]
pub struct Object(Vec<(String, Value)>);

#[derive(Debug)]
enum Value {
    Text(String),
    Integer(i64),
    Object(Object),
    Null,
}

impl Object {
    /// Parses one JSON object and nothing after it.
    pub fn parse(json: &[u8]) -> Result<Self, FieldError> {
        serde_json::from_slice(json).map_err(|error| {
            let text = error.to_string();
            let problem = text
                .rsplit_once(" at line ")
                .map_or(text.as_str(), |(problem, _)| problem);
            FieldError::at("", problem)
        })
    }

    /// A text field that must be there.
    pub fn text(&mut self, name: &'static str) -> Result<String, FieldError> {
        self.optional_text(name)?
            .ok_or_else(|| FieldError::at(name, "is missing"))
    }

    /// A text field that may be absent.
    pub fn optional_text(&mut self, name: &'static str) -> Result<Option<String>, FieldError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(FieldError::at(name, "must be text")),
        }
    }

    /// A field that must be there and holds text or `null`.
    pub fn nullable_text(&mut self, name: &'static str) -> Result<Option<String>, FieldError> {
        match self.take(name) {
            None => Err(FieldError::at(name, "is missing")),
            Some(Value::Null) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(FieldError::at(name, "must be text or null")),
        }
    }

    /// A text field parsed into `T`.
    pub fn parsed<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<T, FieldError> {
        self.text(name)?
            .parse()
            .map_err(|error: T::Err| FieldError::at(name, error.to_string()))
    }

    /// An integer field that must be there.
    pub fn integer(&mut self, name: &'static str) -> Result<i64, FieldError> {
        self.optional_integer(name)?
            .ok_or_else(|| FieldError::at(name, "is missing"))
    }

    /// An integer field that may be absent.
    pub fn optional_integer(&mut self, name: &'static str) -> Result<Option<i64>, FieldError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Integer(number)) => Ok(Some(number)),
            Some(_) => Err(FieldError::at(name, "must be an integer")),
        }
    }

    /// An object field that must be there.
    pub fn object(&mut self, name: &'static str) -> Result<Object, FieldError> {
        match self.take(name) {
            None => Err(FieldError::at(name, "is missing")),
            Some(Value::Object(object)) => Ok(object),
            Some(_) => Err(FieldError::at(name, "must be an object")),
        }
    }

    /// Refuses whatever was not taken.
    pub fn finish(self) -> Result<(), FieldError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(FieldError::at(name, "is not known here")),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(index).1)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields: Vec<(String, Value)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format!("field {name:?} appears twice")));
                    }
                    if fields.len() == 64 {
                        return Err(de::Error::custom("an object has more than 64 fields"));
                    }
                    let value = map.next_value()?;
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, an integer or an object")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Integer(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
                i64::try_from(number)
                    .map(Value::Integer)
                    .map_err(|_| E::custom("a number does not fit 64 bits"))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
                Object::deserialize(de::value::MapAccessDeserializer::new(map)).map(Value::Object)
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_two_ways_is_refused() {
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e3}"#,
            r#"{"a":-0}"#,
            r#"{"a":01}"#,
            r#"{"a":18446744073709551615}"#,
            r#"{"a":99999999999999999999}"#,
            r#"{"a":[1]}"#,
            r#"{"a":true}"#,
            r#"{"a":1} "#.trim_end().strip_suffix('}').unwrap(),
            r#"{"a":1}x"#,
            "[]",
            "",
        ] {
            assert!(Object::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let mut object = Object::parse(br#"{"a":"x","b":{"c":1},"d":2}"#).unwrap();
        assert_eq!(object.text("a").unwrap(), "x");
        let error = object
            .object("b")
            .unwrap()
            .text("c")
            .unwrap_err()
            .within("b");
        assert_eq!(error.to_string(), "b.c: must be text");
        let mut null = Object::parse(br#"{"a":null,"b":null}"#).unwrap();
        assert_eq!(null.nullable_text("a"), Ok(None));
        assert!(null.optional_text("b").is_err());
        assert_eq!(object.text("z").unwrap_err().to_string(), "z: is missing");
        assert_eq!(
            object.finish().unwrap_err().to_string(),
            "d: is not known here"
        );
    }

    #[test]
    fn numbers_of_64_bits_and_objects_of_64_fields_are_read() {
        for number in [i64::MIN, -1, 0, i64::MAX] {
            let mut object = Object::parse(format!("{{\"a\":{number}}}").as_bytes()).unwrap();
            assert_eq!(object.integer("a"), Ok(number));
        }
        let of = |count: usize| {
            let fields: Vec<String> = (0..count).map(|n| format!("\"f{n}\":1")).collect();
            Object::parse(format!("{{{}}}", fields.join(",")).as_bytes())
        };
        assert!(of(64).is_ok());
        assert!(of(65).unwrap_err().to_string().contains("64"));
    }

    #[test]
    fn a_field_is_taken_as_what_it_is_or_refused() {
        let mut object =
            Object::parse(br#"{"t":"x","i":5,"o":{},"n":null,"u":"x","j":5,"p":"x"}"#).unwrap();
        assert_eq!(object.optional_integer("none"), Ok(None));
        assert_eq!(object.optional_text("none"), Ok(None));
        assert_eq!(object.optional_integer("i"), Ok(Some(5)));
        assert_eq!(object.nullable_text("u"), Ok(Some("x".to_owned())));
        let problem = |result: Result<(), FieldError>| result.unwrap_err().to_string();
        assert_eq!(
            problem(object.integer("t").map(|_| ())),
            "t: must be an integer"
        );
        assert_eq!(
            problem(object.object("n").map(|_| ())),
            "n: must be an object"
        );
        assert_eq!(
            problem(object.nullable_text("o").map(|_| ())),
            "o: must be text or null"
        );
        assert_eq!(problem(object.text("j").map(|_| ())), "j: must be text");
        for absent in [
            problem(object.integer("z").map(|_| ())),
            problem(object.object("z").map(|_| ())),
            problem(object.nullable_text("z").map(|_| ())),
        ] {
            assert_eq!(absent, "z: is missing");
        }
        assert!(
            object
                .parsed::<u8>("p")
                .unwrap_err()
                .to_string()
                .starts_with("p: ")
        );
        assert_eq!(object.finish(), Ok(()));
        let whole = Object::parse(b"[]").unwrap_err();
        assert!(whole.to_string().starts_with("invalid type"), "{whole}");
        let whole = whole.within("outer");
        assert_eq!(whole.field, "outer");
    }
}
