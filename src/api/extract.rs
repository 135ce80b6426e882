//! Extractors whose refusals are problem documents.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::problem::{Code, Problem};
use crate::http::{BodyError, media_type};

/// A JSON body, in either direction. A request must say `content-type: application/json`.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        expect_media_type(&request, media_type::JSON)?;
        let body = read(request).await?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| Problem::new(Code::Malformed, describe(&error)))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// A body of another media type, whole.
#[derive(Debug, Clone)]
pub struct Raw<M> {
    /// The bytes.
    pub bytes: Bytes,
    kind: std::marker::PhantomData<M>,
}

/// The media type a [`Raw`] body must have.
pub trait MediaType {
    /// Type and subtype, lower case.
    const NAME: &'static str;
}

/// A compact JWS.
#[derive(Debug)]
pub struct Jose;

impl MediaType for Jose {
    const NAME: &'static str = media_type::JOSE;
}

impl<S: Sync, M: MediaType> FromRequest<S> for Raw<M> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        expect_media_type(&request, M::NAME)?;
        Ok(Self {
            bytes: read(request).await?,
            kind: std::marker::PhantomData,
        })
    }
}

/// Path parameters, parsed to their types.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(Problem::new(
                Code::NotFound,
                format!("{} names nothing", parts.uri.path()),
            )),
        }
    }
}

/// The parameters of the query, parsed to their types.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(error) => Err(Problem::new(
                Code::Malformed,
                format!("the query is malformed: {error}"),
            )),
        }
    }
}

/// The whole body within the door's limits.
pub async fn read(request: Request) -> Result<Bytes, Problem> {
    match request.into_body().collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(body_problem(error)),
    }
}

fn body_problem(error: axum::Error) -> Problem {
    let mut error = error.into_inner();
    loop {
        error = match error.downcast::<BodyError>() {
            Ok(error) => return Problem::from(*error),
            Err(error) => error,
        };
        if error.is::<http_body_util::LengthLimitError>() {
            return Problem::new(Code::TooLarge, "the body is larger than is allowed here");
        }
        // A layer that wraps the body wraps its errors.
        error = match error.downcast::<axum::Error>() {
            Ok(inner) => inner.into_inner(),
            Err(error) => {
                return Problem::new(Code::Malformed, format!("the body cannot be read: {error}"));
            }
        };
    }
}

fn expect_media_type(request: &Request, expected: &'static str) -> Result<(), Problem> {
    if media_type::is(request.headers().get(CONTENT_TYPE), expected) {
        Ok(())
    } else {
        Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("the content type must be {expected}"),
        ))
    }
}

/// What is wrong with a JSON text, without repeating values of it: they may be secrets.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!("line {} column {}", error.line(), error.column());
    let names_only = ["missing field", "unknown field", "duplicate field"];
    if error.is_data() && !names_only.iter().any(|start| text.starts_with(start)) {
        format!("the JSON body has a value of a wrong type or form that ends at {place}")
    } else {
        format!("the JSON body is malformed: {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Unlock {
        #[serde(rename = "pin")]
        _pin: String,
    }

    #[test]
    fn a_wrong_value_is_not_repeated() {
        let error = serde_json::from_str::<Unlock>(r#"{"pin": 123456}"#).unwrap_err();
        let text = describe(&error);
        assert!(!text.contains("123456"), "{text}");
        let error = serde_json::from_str::<Unlock>("{}").unwrap_err();
        assert!(describe(&error).contains("missing field `pin`"));
    }

    #[tokio::test]
    async fn the_media_type_is_checked_before_the_body() {
        let request = |kind: &str| {
            Request::builder()
                .header(CONTENT_TYPE, kind)
                .body(axum::body::Body::from("[]"))
                .unwrap()
        };
        let refused = Json::<Vec<u8>>::from_request(request("text/plain"), &()).await;
        assert_eq!(refused.unwrap_err().code(), Code::UnsupportedMediaType);
        let taken = Json::<Vec<u8>>::from_request(request("Application/JSON; charset=utf-8"), &());
        assert!(taken.await.unwrap().0.is_empty());
    }
}
