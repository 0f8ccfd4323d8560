//! The arguments of the two calls that begin and end a move.

use super::xdr::{Reader, TypedParameter, TypedValue, Writer, XdrError};

/// Arguments of `DOMAIN_MIGRATE_PREPARE3_PARAMS`: begin to receive a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareCall {
    /// Migration parameters, the definition among them.
    pub parameters: Vec<TypedParameter>,
    /// XML that the two daemons exchange.
    pub cookie: Vec<u8>,
    /// `VIR_MIGRATE_*`
    pub flags: u32,
}

impl PrepareCall {
    /// Reads the arguments.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn parse(body: &[u8]) -> Result<Self, XdrError> {
        let mut reader = Reader::new(body);
        let call = Self { parameters: reader.parameters()?, cookie: reader.opaque()?.to_vec(), flags: reader.u32()? };
        reader.end()?;
        Ok(call)
    }

    /// The body of this call.
    pub fn body(&self) -> Vec<u8> {
        Writer::new().parameters(&self.parameters).opaque(&self.cookie).u32(self.flags).finish()
    }
}

/// Arguments of `DOMAIN_MIGRATE_FINISH3_PARAMS`: take over the VM, or drop it.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishCall {
    /// Migration parameters.
    pub parameters: Vec<TypedParameter>,
    /// XML that the two daemons exchange; carries the persistent definition.
    pub cookie: Vec<u8>,
    /// `VIR_MIGRATE_*`
    pub flags: u32,
    /// Whether the source failed, so that the destination's copy must be dropped.
    pub cancelled: bool,
}

impl FinishCall {
    /// Reads the arguments.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn parse(body: &[u8]) -> Result<Self, XdrError> {
        let mut reader = Reader::new(body);
        let call = Self {
            parameters: reader.parameters()?,
            cookie: reader.opaque()?.to_vec(),
            flags: reader.u32()?,
            cancelled: reader.i32()? != 0,
        };
        reader.end()?;
        Ok(call)
    }

    /// The body of this call.
    pub fn body(&self) -> Vec<u8> {
        Writer::new()
            .parameters(&self.parameters)
            .opaque(&self.cookie)
            .u32(self.flags)
            .i32(i32::from(self.cancelled))
            .finish()
    }
}

/// The string parameter `field` of a call.
pub fn text_parameter<'a>(parameters: &'a [TypedParameter], field: &str) -> Option<&'a str> {
    parameters.iter().find(|parameter| parameter.field == field).and_then(|parameter| {
        let TypedValue::Text(text) = &parameter.value else { return None };
        Some(text.as_str())
    })
}
