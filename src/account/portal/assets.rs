//! Style sheet, scripts and icon, compiled in and served under names that hold their content's
//! hash: a browser keeps them for a year and still never has an old one.
//!
//! Scripts import each other by plain names (`./sdk.js`); those are replaced by the hashed ones
//! here, once, so each script's own hash covers what it imports.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use crate::api::extract::Path;
use crate::api::problem::{Code, Problem};
use crate::base::encoding::{hex, sha256};

/// Where assets are served.
pub const PREFIX: &str = "/assets/";

/// One file.
struct Asset {
    /// The name it has in the source.
    name: &'static str,
    /// The path it is served at.
    path: String,
    media_type: &'static str,
    content: Bytes,
}

/// What stands first may be imported by what comes later.
const SOURCES: &[(&str, &str, &str)] = &[
    (
        "portal.css",
        "text/css; charset=utf-8",
        include_str!("assets/portal.css"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    (
        "opcert.js",
        "text/javascript; charset=utf-8",
        include_str!("../../../web/opcert.js"),
    ),
    (
        "portal.js",
        "text/javascript; charset=utf-8",
        include_str!("assets/portal.js"),
    ),
];

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let mut assets: Vec<Asset> = Vec::new();
    for &(name, media_type, source) in SOURCES {
        let mut text = source.to_owned();
        for earlier in &assets {
            let plain = format!("\"./{}\"", earlier.name);
            text = text.replace(&plain, &format!("\"{}\"", earlier.path));
        }
        let hash = &hex(&sha256(text.as_bytes()))[..16];
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "bin"));
        assets.push(Asset {
            name,
            path: format!("{PREFIX}{stem}.{hash}.{extension}"),
            media_type,
            content: Bytes::from(text),
        });
    }
    assets
});

/// The path of the asset `name`; empty for a name that there is not, which a test excludes.
pub fn path(name: &str) -> &'static str {
    ASSETS
        .iter()
        .find(|asset| asset.name == name)
        .map_or("", |asset| asset.path.as_str())
}

/// Serves an asset.
pub async fn serve(Path(file): Path<String>) -> Result<Response, Problem> {
    let asset = ASSETS
        .iter()
        .find(|asset| asset.path.strip_prefix(PREFIX) == Some(file.as_str()))
        .ok_or_else(|| Problem::new(Code::NotFound, "there is no such asset"))?;
    let mut response = asset.content.clone().into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_the_hash_of_what_is_served() {
        assert_eq!(path("nothing"), "");
        for asset in ASSETS.iter() {
            let hash = &hex(&sha256(&asset.content))[..16];
            assert!(asset.path.contains(hash), "{}", asset.path);
            let text = std::str::from_utf8(&asset.content).unwrap();
            assert!(
                !text.contains("from \"./"),
                "{}: a plain import",
                asset.name
            );
        }
    }
}
