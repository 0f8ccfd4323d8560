//! Texts as data: a key and its arguments, with the English of it. Other languages are catalogues in `ferry-texts`.

use crate::id::JobId;

/// Makes an enum of what can be said: a variant for each sentence, its arguments, and its English, in which each argument
/// stands by its name. It displays as English. As JSON it is `{"key": "vm-paused", "args": {"vm": "web01"}}`: the key is the
/// variant's name, or what `#[serde(rename)]` says: another key is another sentence to a version that knows the old one.
macro_rules! texts {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$attribute:meta])* $variant:ident $({ $($field:ident: $type:ty),+ $(,)? })? = $text:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        // `remote`: what is derived becomes functions of the enum's own. Derived as traits, these hundreds of variants would
        // be compiled anew in each crate that reads or writes them.
        #[serde(remote = "Self", tag = "key", content = "args", rename_all = "kebab-case")]
        #[allow(missing_docs, reason = "its English explains each")]
        pub enum $name {
            $($(#[$attribute])* $variant $({ $($field: $type),+ })?,)*
            /// A sentence of a later version.
            #[serde(untagged)]
            Unknown { key: String, #[serde(default)] args: serde_json::Value },
        }

        impl $name {
            /// Whether it is a sentence of a later version.
            pub fn is_unknown(&self) -> bool {
                matches!(self, Self::Unknown { .. })
            }

            fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
                Self::serialize(self, serde_json::value::Serializer)
            }

            fn from_json(json: serde_json::Value) -> Result<Self, serde_json::Error> {
                Self::deserialize(json)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(&self.to_json().map_err(serde::ser::Error::custom)?, to)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let json = <serde_json::Value as serde::Deserialize>::deserialize(from)?;
                Self::from_json(json).map_err(serde::de::Error::custom)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$variant $({ $($field),+ })? => write!(f, $text),)*
                    Self::Unknown { key, args } => write!(f, "{key} {args}"),
                }
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $crate::text::schema()
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::ToSchema for $name {}
    };
}
pub(crate) use texts;

/// The schema of what [`texts`] makes.
#[cfg(feature = "schema")]
pub(crate) fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
    use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
    let any_object = Object::with_type(Type::Object);
    let sentence = ObjectBuilder::new().property("key", Object::with_type(Type::String)).property("args", any_object);
    sentence.required("key").description(Some("A sentence: its stable key and its arguments, by name")).build().into()
}

/// Makes types of lists: how each item is written in English, and what stands between two. As JSON they are arrays.
macro_rules! lists {
    ($($(#[$meta:meta])* $name:ident($item:ty) = $each:literal, $between:literal;)*) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Vec<$item>);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let items: Vec<String> = self.0.iter().map(|item| format!($each, item)).collect();
                f.write_str(&items.join($between))
            }
        }
    )* };
}
pub(crate) use lists;

lists! {
    /// Several words.
    List(String) = "{}", ", ";
    /// Several words, one of which is to be chosen.
    AnyOf(String) = "{}", " or ";
    /// Several words, all of which are meant.
    AllOf(String) = "{}", " and ";
    /// Several jobs.
    Jobs(JobId) = "job {}", " and ";
}

impl<T: ToString> FromIterator<T> for List {
    fn from_iter<I: IntoIterator<Item = T>>(words: I) -> Self {
        Self(words.into_iter().map(|word| word.to_string()).collect())
    }
}
