//! The JSON form of a request, field by field.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::checks::{SHOWN, check_name, check_names, unknown};
use crate::query::error::SearchError;
use crate::text::shortened;

/// What [`FieldsOf::place`] is for the request itself.
pub(super) const REQUEST: &str = "the request";

/// The known fields of a JSON object, unparsed. Nothing is built from what the sender wrote before its name is known: a
/// body of 30 MB of small values would otherwise take a gigabyte as a tree.
pub(super) struct Fields<'a> {
    place: &'static str,
    values: HashMap<&'static str, &'a RawValue>,
    problem: Option<String>,
}

impl<'a> Fields<'a> {
    /// # Errors
    /// An unknown field, or one that occurs twice.
    pub fn check(&self) -> Result<(), SearchError> {
        self.problem.as_ref().map_or(Ok(()), |problem| Err(SearchError::bad_request(problem.clone())))
    }

    /// A field that is there and not null.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.values.get(name).copied().filter(|raw| raw.get() != "null")
    }

    /// # Errors
    /// It is no string.
    pub fn string(&self, name: &str) -> Result<Option<String>, SearchError> {
        self.raw(name)
            .map(|raw| {
                serde_json::from_str(raw.get())
                    .map_err(|_| SearchError::bad_request(format!("{} must be a string", self.path(name))))
            })
            .transpose()
    }

    /// A short string.
    ///
    /// # Errors
    /// It is none, or empty, or too long.
    pub fn name(&self, name: &str) -> Result<Option<String>, SearchError> {
        self.string(name)?.map(|text| check_name(name, text)).transpose()
    }

    /// A number or a truth value as it is written; a string keeps its quotes, and is neither.
    pub fn scalar(&self, name: &str) -> Option<String> {
        // Longer ones are no number that any option takes.
        self.raw(name).map(|raw| shortened(raw.get(), SHOWN).into_owned())
    }

    /// A string without its quotes, or a number as it is written.
    pub fn word(&self, name: &str) -> Option<String> {
        let raw = self.raw(name)?;
        Some(serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| shortened(raw.get(), SHOWN).into_owned()))
    }

    /// # Errors
    /// It is no list of strings (or, where `or_one` says so, one string), or has too many or too long ones.
    pub fn names(&self, name: &str, or_one: bool) -> Result<Vec<String>, SearchError> {
        let Some(raw) = self.raw(name) else { return Ok(Vec::new()) };
        if let (true, Ok(one)) = (or_one, serde_json::from_str::<String>(raw.get())) {
            return Ok(vec![check_name(name, one)?]);
        }
        let names: Vec<String> = serde_json::from_str(raw.get()).map_err(|_| {
            let form = if or_one { "a string or a list of strings" } else { "a list of strings" };
            SearchError::bad_request(format!("{} must be {form}", self.path(name)))
        })?;
        check_names(&self.path(name), names)
    }

    /// The field's name as errors give it.
    fn path(&self, name: &str) -> String {
        if self.place == REQUEST { name.to_owned() } else { format!("{}.{name}", self.place) }
    }
}

/// The known fields of an object inside the request.
///
/// # Errors
/// It is no object, or has a field that is not known.
pub(super) fn nested<'a>(
    raw: &'a RawValue,
    place: &'static str,
    known: &'static [&'static str],
) -> Result<Fields<'a>, SearchError> {
    let fields = FieldsOf { known, place }
        .deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
        .map_err(|_| SearchError::bad_request(format!("{place} must be an object")))?;
    fields.check()?;
    Ok(fields)
}

pub(super) struct FieldsOf {
    pub known: &'static [&'static str],
    pub place: &'static str,
}

impl<'de> DeserializeSeed<'de> for FieldsOf {
    type Value = Fields<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsOf {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    // Goes on behind a problem: a request_id that stands after it is still wanted for the answer.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields { place: self.place, values: HashMap::new(), problem: None };
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.known.iter().find(|known| **known == key) {
                Some(known) => {
                    if fields.values.insert(known, map.next_value()?).is_some() {
                        fields.problem.get_or_insert_with(|| format!("{known} occurs twice in {}", self.place));
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                    fields
                        .problem
                        .get_or_insert_with(|| format!("{} in {}", unknown("field", &key, self.known), self.place));
                }
            }
        }
        Ok(fields)
    }
}
