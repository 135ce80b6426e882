//! `/v1/openapi.json`: the OpenAPI 3.1 document, generated from the handlers.

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, Required, ResponseBuilder};

use super::App;
use crate::api::problem::{Code, MEDIA_TYPE, ProblemDocument};
use crate::http::media_type;

/// Where the document is.
pub const PATH: &str = "/v1/openapi.json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "opcertd",
        description = "The daemon that holds operating keys on PKCS#11 tokens.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(ProblemDocument, Code)),
    tags(
        (name = "daemon", description = "The daemon itself"),
        (name = "tokens", description = "PKCS#11 tokens and their modules"),
        (name = "certificates", description = "Operating certificates and how they are installed"),
        (name = "approvals", description = "Approvals of sensitive operations"),
        (name = "services", description = "What account services hand in, signed"),
        (name = "policy", description = "The rules that decide, and why"),
        (name = "wechatpay", description = "Messages of WeChat Pay merchants, signed, checked and opened"),
        (name = "merchants", description = "WeChat Pay merchants, their keys, secrets and platform keys"),
        (name = "clients", description = "Programs that may use the native door"),
    )
)]
struct Document;

pub(super) fn base() -> OpenApi {
    Document::openapi()
}

/// The document that the daemon serves.
pub fn document() -> OpenApi {
    finish(super::documented().to_openapi())
}

pub(super) fn route(document: &OpenApi) -> Router<App> {
    // A document made of our own types cannot fail to serialise.
    let text = finish(document.clone()).to_json().unwrap_or_default();
    let text = Bytes::from(text);
    Router::new().route(
        PATH,
        get(move || async move { ([(CONTENT_TYPE, media_type::JSON)], text) }),
    )
}

/// Every operation may answer with a problem, in the language that the request prefers.
fn finish(mut document: OpenApi) -> OpenApi {
    let language = ParameterBuilder::new()
        .name("accept-language")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "The language of texts for people (RFC 9110 section 12.5.4): `en`, the default, or `zh`.",
        ))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    let answered = HeaderBuilder::new()
        .description(Some("The language of title and action: `en` or `zh`."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    let problem = ResponseBuilder::new()
        .description("A problem; `code` says which.")
        .content(
            MEDIA_TYPE,
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ProblemDocument")))
                .build(),
        )
        .header("content-language", answered)
        .build();
    for item in document.paths.paths.values_mut() {
        let operations: [&mut Option<Operation>; 4] = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            operation
                .parameters
                .get_or_insert_default()
                .push(language.clone().into());
            operation
                .responses
                .responses
                .insert("default".to_owned(), problem.clone().into());
        }
    }
    document
}
