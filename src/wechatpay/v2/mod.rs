//! Interface version 2: flat XML, signed with MD5 or HMAC-SHA256 under a shared secret.
//!
//! Source: `pay.weixin.qq.com/wiki/doc/api/app/app.php?chapter=4_3`. The scheme has weaknesses of
//! its own, and this module takes care of those that a careful reader can take care of:
//! - the sign type is pinned per merchant ([`Rules`]), never inferred from what arrived, so an
//!   HMAC cannot be turned into an MD5;
//! - every field but `sign` is signed, whatever its name;
//! - values are not escaped in the string to sign, so `{a: "1&b=2"}` and `{a: "1", b: "2"}` have
//!   one signature: unless the rules say otherwise, a message is refused if it could be read as
//!   another one with more fields ([`Embedded`]);
//! - XML is read without DTDs, entities, attributes, nesting or duplicates ([`Fields::from_xml`]).
//!
//! What remains: the secret is on both sides, so a signature proves nothing to a third party;
//! answers with a `return_code` other than `SUCCESS` and those of some paths carry none; the
//! content of refund notifications has no integrity at all ([`open_refund`]).

mod fields;
mod refund;
mod sign;
mod xml;

pub use fields::{Fields, FieldsError};
pub use refund::{RefundError, open_refund};
pub use sign::{Embedded, Rules, SignError, SignType, Suffix, Verified};
pub use xml::XmlError;
