//! XDR (RFC 4506), as far as libvirt's migration calls use it.

use thiserror::Error;

/// libvirt's own limit of typed parameters in a migration call (`REMOTE_DOMAIN_MIGRATE_PARAM_LIST_MAX`).
const PARAMETERS_MAX: u32 = 64;

/// Why bytes are not the expected XDR value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum XdrError {
    /// Fewer bytes than the value needs.
    #[error("The message ends inside a value")]
    Short,
    /// More bytes than the value has.
    #[error("The message has {0} bytes after its last value")]
    Trailing(usize),
    /// A string that is not UTF-8, or contains a NUL, at which libvirt would cut it.
    #[error("A string of the message is not plain text")]
    Text,
    /// A count or discriminant outside its range.
    #[error("The message has {what} {value}, which no libvirt sends")]
    Range {
        /// What it counts or selects.
        what: &'static str,
        /// The value.
        value: u32,
    },
}

/// Value of a typed parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum TypedValue {
    /// `VIR_TYPED_PARAM_INT`
    Int(i32),
    /// `VIR_TYPED_PARAM_UINT`
    Uint(u32),
    /// `VIR_TYPED_PARAM_LLONG`
    Long(i64),
    /// `VIR_TYPED_PARAM_ULLONG`
    Ulong(u64),
    /// `VIR_TYPED_PARAM_DOUBLE`
    Double(f64),
    /// `VIR_TYPED_PARAM_BOOLEAN`
    Boolean(bool),
    /// `VIR_TYPED_PARAM_STRING`
    Text(String),
}

/// One typed parameter: a field's name and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct TypedParameter {
    /// libvirt's name of it (`migrate_uri`).
    pub field: String,
    /// Its value.
    pub value: TypedValue,
}

impl TypedParameter {
    /// A string parameter.
    pub fn text(field: &str, value: impl Into<String>) -> Self {
        Self { field: field.to_owned(), value: TypedValue::Text(value.into()) }
    }
}

/// Reads XDR values from the front of a message body. Every length is checked against the available bytes before use.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from `body`.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&'a [u8], XdrError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(XdrError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    /// An unsigned 32-bit number.
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("`take` returned four bytes")))
    }

    /// A signed 32-bit number.
    pub fn i32(&mut self) -> Result<i32, XdrError> {
        self.u32().map(|value| value as i32)
    }

    /// An unsigned 64-bit number.
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        let bytes = self.take(8)?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("`take` returned eight bytes")))
    }

    /// Bytes of any length, padded to four.
    pub fn opaque(&mut self) -> Result<&'a [u8], XdrError> {
        let length = self.u32()? as usize;
        let bytes = self.take(length)?;
        self.take(length.next_multiple_of(4) - length)?;
        Ok(bytes)
    }

    /// A string without NUL.
    pub fn text(&mut self) -> Result<&'a str, XdrError> {
        let text = std::str::from_utf8(self.opaque()?).map_err(|_| XdrError::Text)?;
        if text.contains('\0') { Err(XdrError::Text) } else { Ok(text) }
    }

    /// A string that may be absent.
    pub fn optional_text(&mut self) -> Result<Option<&'a str>, XdrError> {
        match self.u32()? {
            0 => Ok(None),
            1 => self.text().map(Some),
            value => Err(XdrError::Range { what: "presence flag", value }),
        }
    }

    /// A list of typed parameters.
    pub fn parameters(&mut self) -> Result<Vec<TypedParameter>, XdrError> {
        let count = self.u32()?;
        if count > PARAMETERS_MAX {
            return Err(XdrError::Range { what: "parameter count", value: count });
        }
        (0..count).map(|_| self.parameter()).collect()
    }

    fn parameter(&mut self) -> Result<TypedParameter, XdrError> {
        let field = self.text()?.to_owned();
        let value = match self.u32()? {
            1 => TypedValue::Int(self.i32()?),
            2 => TypedValue::Uint(self.u32()?),
            3 => TypedValue::Long(self.u64()? as i64),
            4 => TypedValue::Ulong(self.u64()?),
            5 => TypedValue::Double(f64::from_bits(self.u64()?)),
            6 => TypedValue::Boolean(self.u32()? != 0),
            7 => TypedValue::Text(self.text()?.to_owned()),
            value => return Err(XdrError::Range { what: "parameter type", value }),
        };
        Ok(TypedParameter { field, value })
    }

    /// Succeeds if everything was read.
    pub fn end(self) -> Result<(), XdrError> {
        if self.0.is_empty() { Ok(()) } else { Err(XdrError::Trailing(self.0.len())) }
    }
}

/// Builds a message body from XDR values.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an unsigned 32-bit number.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends a signed 32-bit number.
    #[must_use]
    pub fn i32(self, value: i32) -> Self {
        self.u32(value as u32)
    }

    /// Appends an unsigned 64-bit number.
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends bytes that are already XDR, such as a fixed-length array.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Appends bytes of any length.
    #[must_use]
    pub fn opaque(mut self, bytes: &[u8]) -> Self {
        self.0.extend((bytes.len() as u32).to_be_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a string.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.opaque(text.as_bytes())
    }

    /// Appends a string that may be absent.
    #[must_use]
    pub fn optional_text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.u32(1).text(text),
            None => self.u32(0),
        }
    }

    /// Appends a list of typed parameters.
    #[must_use]
    pub fn parameters(self, parameters: &[TypedParameter]) -> Self {
        let counted = self.u32(parameters.len() as u32);
        parameters.iter().fold(counted, |body, parameter| {
            let body = body.text(&parameter.field);
            match &parameter.value {
                TypedValue::Int(value) => body.u32(1).i32(*value),
                TypedValue::Uint(value) => body.u32(2).u32(*value),
                TypedValue::Long(value) => body.u32(3).u64(*value as u64),
                TypedValue::Ulong(value) => body.u32(4).u64(*value),
                TypedValue::Double(value) => body.u32(5).u64(value.to_bits()),
                TypedValue::Boolean(value) => body.u32(6).u32(u32::from(*value)),
                TypedValue::Text(value) => body.u32(7).text(value),
            }
        })
    }

    /// The body.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = TypedValue> {
        prop_oneof![
            any::<i32>().prop_map(TypedValue::Int),
            any::<u32>().prop_map(TypedValue::Uint),
            any::<i64>().prop_map(TypedValue::Long),
            any::<u64>().prop_map(TypedValue::Ulong),
            (-1e9..1e9f64).prop_map(TypedValue::Double),
            any::<bool>().prop_map(TypedValue::Boolean),
            "[ -~äß]{0,20}".prop_map(TypedValue::Text),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(fields in prop::collection::vec(("[a-z_.]{1,12}", any_value()), 0..9)) {
            let parameters: Vec<_> =
                fields.into_iter().map(|(field, value)| TypedParameter { field, value }).collect();
            let body = Writer::new().parameters(&parameters).opaque(b"cookie").u64(7).finish();
            let mut reader = Reader::new(&body);
            prop_assert_eq!(reader.parameters(), Ok(parameters));
            prop_assert_eq!(reader.opaque(), Ok(&b"cookie"[..]));
            prop_assert_eq!(reader.u64(), Ok(7));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_text_with_nul_is_refused() {
        let body = Writer::new().text("ab\0cd").finish();
        assert_eq!(Reader::new(&body).text(), Err(XdrError::Text));
    }

    #[test]
    fn a_length_beyond_the_message_is_short() {
        let body = Writer::new().u32(u32::MAX).finish();
        assert_eq!(Reader::new(&body).opaque(), Err(XdrError::Short));
    }
}
