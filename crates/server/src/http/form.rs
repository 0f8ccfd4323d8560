//! Request bodies and numbers in the form that the API document describes.

use axum::{
    Json,
    extract::{FromRequest, Request, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Above this, a JSON number may not be the whole number that it seems to be.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// A JSON body. Whole numbers may be written with a zero fraction, as in JSON Schema.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let Json(mut value) =
            Json::<Value>::from_request(request, state).await.map_err(JsonRejection::into_response)?;
        make_whole(&mut value);
        serde_json::from_value(value)
            .map(Self)
            .map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response())
    }
}

fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|_| number.is_f64())
                && float.fract() == 0.0
                && (0.0..=WHOLE_MAX).contains(&float)
            {
                *value = Value::from(float as u64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(make_whole),
        Value::Object(object) => object.values_mut().for_each(make_whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// A whole number in a query. Its range is the document's (`int64`): below 2⁶³.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Number(u64);

impl TryFrom<u64> for Number {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        if number > i64::MAX as u64 { Err(format!("{number} is above {}", i64::MAX)) } else { Ok(Self(number)) }
    }
}

impl From<Number> for u64 {
    fn from(number: Number) -> Self {
        number.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
        let mut value = json!({"a": 413.0, "b": [7.5, -1.0, {"c": 1e3}], "d": 1e300, "e": 3});
        make_whole(&mut value);
        assert_eq!(value, json!({"a": 413, "b": [7.5, -1.0, {"c": 1000}], "d": 1e300, "e": 3}));
    }

    #[test]
    fn numbers_of_queries_are_as_wide_as_the_document_says() {
        assert_eq!(Number::try_from(i64::MAX as u64).map(u64::from), Ok(i64::MAX as u64));
        assert!(Number::try_from(1 << 63).is_err());
    }
}
