//! A field of the Hub's JSON, as far as anything is made of it: [`Field`].

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use std::{borrow::Cow, fmt};

/// A value in whatever shape it comes, so that a change there breaks nothing.
///
/// Lists are passed over, and of objects all but two fields: kept, as `serde_json::Value` keeps them, they would take dozens of times the
/// bytes a server sends.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Field<'a> {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List,
    Object {
        oid: Option<Box<Field<'a>>>,
        size: Option<Box<Field<'a>>>,
    },
}

impl<'a> Field<'a> {
    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        if let Self::Number(number) = self { number.as_u64() } else { None }
    }

    pub(super) fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// The field `oid` of an object.
    pub(super) fn oid(&self) -> Option<&Field<'a>> {
        if let Self::Object { oid, .. } = self { oid.as_deref() } else { None }
    }

    /// The field `size` of an object.
    pub(super) fn size(&self) -> Option<&Field<'a>> {
        if let Self::Object { size, .. } = self { size.as_deref() } else { None }
    }
}

/// As JSON has it, for messages; not yet escaped.
impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::List => f.write_str("[..]"),
            Self::Object { .. } => f.write_str("{..}"),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Field<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Field<'de>, E> {
                Ok(Field::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Field<'de>, E> {
                Ok(Field::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Field<'de>, E> {
                Ok(Field::Number(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Field<'de>, E> {
                Ok(Field::Number(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Field<'de>, E> {
                Ok(Number::from_f64(value).map_or(Field::Null, Field::Number))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field<'de>, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Field<'de>, A::Error> {
                let (mut oid, mut size) = (None, None);
                while let Some(name) = object.next_key::<Cow<'_, str>>()? {
                    match &*name {
                        "oid" => oid = Some(object.next_value()?),
                        "size" => size = Some(object.next_value()?),
                        _ => drop(object.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Field::Object { oid, size })
            }
        }
        deserializer.deserialize_any(Any)
    }
}
