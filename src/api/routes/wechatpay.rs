//! `/v1/wechatpay`: for merchants' servers, on the native door and the control socket; and the
//! administration of merchants, on the control socket only.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use crate::api::caller::{Administrator, Identified};
use crate::api::extract::{Json, Path};
use crate::api::problem::{Code, Problem};
use crate::api::wechatpay::{
    AddMerchant, AddMerchantKey, AskForSecrets, DecryptFields, DecryptedFields, EncryptFields,
    EncryptedFields, FieldsV2, InstallMerchantCertificate, MerchantList, MessageV2, OpenRefund,
    OpenedNotification, Pairs, PinPlatformKey, PlatformKeysTaken, Received, ReceivedCertificates,
    RetirePlatformKey, SealedSecret, SignPayment, SignRequest, SignedMessageV2, SignedPayment,
    SignedRequest, TrustAuthorities, Verified, body_bytes,
};
use crate::base::ids::RequestId;
use crate::base::pkcs11::{KeyId, TokenUri};
use crate::base::secret::SecretText;
use crate::base::x509::Certificate;
use crate::device::RsaPrivateKey;
use crate::merchants::{
    Adding, Ask, Link, MerchantError, MerchantView, Merchants, NewKey, PaymentToStart, PlatformPin,
    RequestToSign, SecretRequests, SecretSet, V2Message,
};
use crate::policy::{Caller, NO_PAGES};
use crate::wechatpay::v2::Fields;
use crate::wechatpay::v3::{Delivery, Method, SignatureHeaders};
use crate::wechatpay::{MerchantId, PlatformKeyId};

/// The most issuers that are trusted for platform certificates.
const MOST_AUTHORITIES: usize = 8;

pub(super) fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sign_request))
        .routes(routes!(sign_payment))
        .routes(routes!(verify))
        .routes(routes!(open_notification))
        .routes(routes!(encrypt_fields))
        .routes(routes!(decrypt_fields))
        .routes(routes!(take_certificates))
        .routes(routes!(sign_v2))
        .routes(routes!(verify_v2))
        .routes(routes!(open_refund))
        .routes(routes!(list_merchants, add_merchant))
        .routes(routes!(remove_merchant))
        .routes(routes!(add_merchant_key))
        .routes(routes!(remove_merchant_key))
        .routes(routes!(install_merchant_certificate))
        .routes(routes!(pin_platform_key))
        .routes(routes!(retire_platform_key))
        .routes(routes!(trust_authorities))
        .routes(routes!(take_secret))
        .routes(routes!(ask_for_secrets))
}

/// Merchants' keys are for programs: a page is refused, whichever door it came by.
fn ask(identified: Identified, request: RequestId, merchant: MerchantId) -> Result<Ask, Problem> {
    if let Some(page) = identified.page {
        return Err(Problem::new(
            Code::NotPermitted,
            format!("the page {page} may not use keys and secrets of merchants"),
        )
        .with_rule(NO_PAGES));
    }
    Ok(Ask {
        request,
        caller: identified.caller,
        policy: identified.policy,
        merchant,
    })
}

/// What became of a message: the merchants wrote the record where they refused it.
fn on_record(error: MerchantError) -> Problem {
    Problem::from(error).on_record()
}

fn merchants(app: &App) -> &Merchants {
    &app.0.merchants
}

fn instant(second: Option<i64>) -> Result<Option<Timestamp>, Problem> {
    second.map(Timestamp::from_second).transpose().map_err(|_| {
        Problem::new(
            Code::WechatpayMessage,
            "the timestamp is no time in Unix seconds",
        )
    })
}

fn signature_headers(headers: &Pairs) -> Result<SignatureHeaders, Problem> {
    let pairs = headers.0.iter();
    SignatureHeaders::new(pairs.map(|(name, value)| (name.as_str(), value.as_str())))
        .map_err(|error| MerchantError::Verify(error).into())
}

/// Signs a request to the platform: the value of its `Authorization` header.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/authorization",
    tag = "wechatpay",
    request_body = SignRequest,
    responses((status = 200, description = "The header.", body = SignedRequest))
)]
pub(super) async fn sign_request(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<SignRequest>,
) -> Result<Json<SignedRequest>, Problem> {
    let ask = ask(identified, request_id, wanted.merchant)?;
    let request = RequestToSign {
        method: wanted
            .method
            .parse::<Method>()
            .map_err(MerchantError::Message)?,
        target: wanted.target.parse().map_err(MerchantError::Message)?,
        body: body_bytes(wanted.body, wanted.body_base64)?.unwrap_or_default(),
        timestamp: instant(wanted.timestamp)?,
        nonce: wanted.nonce,
    };
    let signed = merchants(&app)
        .authorization(&ask, request)
        .await
        .map_err(on_record)?;
    Ok(Json(SignedRequest {
        authorization: signed.header,
        serial: signed.serial,
        timestamp: signed.timestamp,
        nonce: signed.nonce,
        signature: signed.signature,
    }))
}

/// Signs the parameters that start a payment in a page, mini program or app.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/paysign",
    tag = "wechatpay",
    request_body = SignPayment,
    responses((status = 200, description = "The parameters.", body = SignedPayment))
)]
pub(super) async fn sign_payment(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<SignPayment>,
) -> Result<Json<SignedPayment>, Problem> {
    let ask = ask(identified, request_id, wanted.merchant)?;
    let payment = PaymentToStart {
        client: wanted.client,
        app: wanted.appid,
        prepay: wanted.prepay_id,
        timestamp: instant(wanted.timestamp)?,
        nonce: wanted.nonce,
    };
    let signed = merchants(&app)
        .pay_sign(&ask, payment)
        .await
        .map_err(on_record)?;
    let parameters = signed.parameters.into_iter();
    Ok(Json(SignedPayment {
        parameters: parameters
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        serial: signed.serial,
    }))
}

/// Checks that an answer or callback is the platform's, and not older than five minutes.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/verify",
    tag = "wechatpay",
    request_body = Received,
    responses((status = 200, description = "It is.", body = Verified))
)]
pub(super) async fn verify(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(received): Json<Received>,
) -> Result<Json<Verified>, Problem> {
    let ask = ask(identified, request_id, received.merchant)?;
    let body = body_bytes(received.body, received.body_base64)?.unwrap_or_default();
    let headers = signature_headers(&received.headers)?;
    let checked = merchants(&app)
        .check(&ask, &headers, &body)
        .await
        .map_err(on_record)?;
    Ok(Json(Verified { key: checked.key }))
}

/// Verifies a callback and opens its content.
///
/// It tells whether the event was delivered before. The very same message is opened once only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/decrypt",
    tag = "wechatpay",
    request_body = Received,
    responses((status = 200, description = "The content.", body = OpenedNotification))
)]
pub(super) async fn open_notification(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(received): Json<Received>,
) -> Result<Json<OpenedNotification>, Problem> {
    let ask = ask(identified, request_id, received.merchant)?;
    let body = body_bytes(received.body, received.body_base64)?.unwrap_or_default();
    let headers = signature_headers(&received.headers)?;
    let opened = merchants(&app)
        .open_notification(&ask, &headers, &body)
        .await
        .map_err(on_record)?;
    Ok(Json(OpenedNotification {
        id: opened.id,
        event_type: opened.event_type,
        resource: opened.resource.expose().to_owned(),
        first_delivered_at: match opened.delivery {
            Delivery::First => None,
            Delivery::Again { first } => Some(first.to_string()),
        },
    }))
}

/// Encrypts fields for the platform.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/fields/encrypt",
    tag = "wechatpay",
    request_body = EncryptFields,
    responses((status = 200, description = "The fields.", body = EncryptedFields))
)]
pub(super) async fn encrypt_fields(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<EncryptFields>,
) -> Result<Json<EncryptedFields>, Problem> {
    let ask = ask(identified, request_id, wanted.merchant)?;
    let encrypted = merchants(&app)
        .encrypt_fields(&ask, &wanted.fields)
        .await
        .map_err(on_record)?;
    Ok(Json(EncryptedFields {
        serial: encrypted.key,
        fields: encrypted.fields,
    }))
}

/// Decrypts fields that the platform encrypted for the merchant's certificate, on the token.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/fields/decrypt",
    tag = "wechatpay",
    request_body = DecryptFields,
    responses((status = 200, description = "The fields.", body = DecryptedFields))
)]
pub(super) async fn decrypt_fields(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<DecryptFields>,
) -> Result<Json<DecryptedFields>, Problem> {
    let ask = ask(identified, request_id, wanted.merchant)?;
    let plain = merchants(&app)
        .decrypt_fields(&ask, &wanted.fields)
        .await
        .map_err(on_record)?;
    let fields = plain.iter().map(|field| field.expose().to_owned());
    Ok(Json(DecryptedFields {
        fields: fields.collect(),
    }))
}

/// Takes the platform's certificates answer: decrypts it, verifies it, keeps its keys.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v3/certificates",
    tag = "wechatpay",
    request_body = ReceivedCertificates,
    responses((status = 200, description = "The keys are held.", body = PlatformKeysTaken))
)]
pub(super) async fn take_certificates(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(received): Json<ReceivedCertificates>,
) -> Result<Json<PlatformKeysTaken>, Problem> {
    let ask = ask(identified, request_id, received.merchant)?;
    let body = body_bytes(received.body, received.body_base64)?.unwrap_or_default();
    let headers = signature_headers(&received.headers)?;
    let taken = merchants(&app)
        .take_certificates(&ask, &headers, &body, received.anew)
        .await
        .map_err(on_record)?;
    Ok(Json(PlatformKeysTaken {
        held: taken.held,
        new: taken.new,
    }))
}

fn message_v2(message: MessageV2) -> Result<V2Message, Problem> {
    let body = body_bytes(message.body, message.body_base64)?;
    match (message.fields, body) {
        (Some(Pairs(pairs)), None) => {
            let fields = Fields::new(pairs).map_err(MerchantError::Fields)?;
            Ok(V2Message::Fields(fields))
        }
        (None, Some(xml)) => Ok(V2Message::Xml(xml)),
        _ => Err(Problem::new(
            Code::Malformed,
            "one of fields, body and body_base64 is needed",
        )),
    }
}

fn fields_v2(fields: &Fields) -> FieldsV2 {
    let pairs = fields.iter();
    FieldsV2 {
        fields: pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// Signs a message of interface version 2.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v2/sign",
    tag = "wechatpay",
    request_body = MessageV2,
    responses((status = 200, description = "The message, signed.", body = SignedMessageV2))
)]
pub(super) async fn sign_v2(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(message): Json<MessageV2>,
) -> Result<Json<SignedMessageV2>, Problem> {
    let ask = ask(identified, request_id, message.merchant.clone())?;
    let signed = merchants(&app)
        .sign_v2(&ask, message_v2(message)?)
        .await
        .map_err(on_record)?;
    Ok(Json(SignedMessageV2 {
        sign: signed.sign,
        body: signed.xml,
    }))
}

/// Checks a message of interface version 2.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v2/verify",
    tag = "wechatpay",
    request_body = MessageV2,
    responses((status = 200, description = "Its fields.", body = FieldsV2))
)]
pub(super) async fn verify_v2(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(message): Json<MessageV2>,
) -> Result<Json<FieldsV2>, Problem> {
    let ask = ask(identified, request_id, message.merchant.clone())?;
    let fields = merchants(&app)
        .check_v2(&ask, message_v2(message)?)
        .await
        .map_err(on_record)?;
    Ok(Json(fields_v2(&fields)))
}

/// Opens the content of a refund notification of interface version 2.
///
/// Nothing authenticates it: ask the platform for the refund before acting on it.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/v2/refund/decrypt",
    tag = "wechatpay",
    request_body = OpenRefund,
    responses((status = 200, description = "Its fields.", body = FieldsV2))
)]
pub(super) async fn open_refund(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    Json(refund): Json<OpenRefund>,
) -> Result<Json<FieldsV2>, Problem> {
    let ask = ask(identified, request_id, refund.merchant)?;
    let fields = merchants(&app)
        .open_refund(&ask, &refund.req_info)
        .await
        .map_err(on_record)?;
    Ok(Json(fields_v2(&fields)))
}

/// Lists the merchants. Control socket only.
#[utoipa::path(
    get,
    path = "/v1/wechatpay/merchants",
    tag = "merchants",
    responses((status = 200, description = "All of them.", body = MerchantList))
)]
pub(super) async fn list_merchants(State(app): State<App>, _: Administrator) -> Json<MerchantList> {
    Json(MerchantList {
        merchants: merchants(&app).list(),
    })
}

/// Adds a merchant: makes or imports its key, and makes the request for its certificate.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/merchants",
    tag = "merchants",
    request_body = AddMerchant,
    responses((status = 201, description = "It is there, without a certificate yet.", body = MerchantView))
)]
pub(super) async fn add_merchant(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<AddMerchant>,
) -> Result<(StatusCode, Json<MerchantView>), Problem> {
    let link = match (wanted.service, wanted.account) {
        (Some(service), Some(account)) => Some(Link {
            service: service
                .parse()
                .map_err(|error| Problem::new(Code::Malformed, format!("service: {error}")))?,
            account,
        }),
        (None, None) => None,
        _ => {
            return Err(Problem::new(
                Code::Malformed,
                "service and account belong together",
            ));
        }
    };
    let adding = Adding {
        merchant: wanted.merchant,
        key: new_key(wanted.token, wanted.private_key)?,
        rules: wanted.rules,
        link,
        authorities: authorities(&wanted.authorities)?,
    };
    let by = caller(&administrator);
    let view = merchants(&app).add(&request_id, &by, adding).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// Removes a merchant, its keys on the token, and with them its secrets.
///
/// Control socket only.
#[utoipa::path(
    delete,
    path = "/v1/wechatpay/merchants/{merchant}",
    tag = "merchants",
    params(("merchant" = MerchantId, Path, description = "Its number.")),
    responses((status = 204, description = "It is gone."))
)]
pub(super) async fn remove_merchant(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(merchant): Path<MerchantId>,
) -> Result<StatusCode, Problem> {
    let by = caller(&administrator);
    merchants(&app).remove(&request_id, &by, &merchant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a key to a merchant, for the certificate that is to replace the one in use.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/merchants/{merchant}/keys",
    tag = "merchants",
    params(("merchant" = MerchantId, Path, description = "Its number.")),
    request_body = AddMerchantKey,
    responses((status = 201, description = "The key is there.", body = MerchantView))
)]
pub(super) async fn add_merchant_key(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(merchant): Path<MerchantId>,
    Json(wanted): Json<AddMerchantKey>,
) -> Result<(StatusCode, Json<MerchantView>), Problem> {
    let by = caller(&administrator);
    let key = new_key(wanted.token, wanted.private_key)?;
    let view = merchants(&app)
        .add_key(&request_id, &by, &merchant, key)
        .await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// Removes one of several keys of a merchant. Control socket only.
#[utoipa::path(
    delete,
    path = "/v1/wechatpay/merchants/{merchant}/keys/{key}",
    tag = "merchants",
    params(
        ("merchant" = MerchantId, Path, description = "Its number."),
        ("key" = String, Path, description = "The key's `CKA_ID`, hexadecimal."),
    ),
    responses((status = 200, description = "It is gone.", body = MerchantView))
)]
pub(super) async fn remove_merchant_key(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path((merchant, key)): Path<(MerchantId, KeyId)>,
) -> Result<Json<MerchantView>, Problem> {
    let by = caller(&administrator);
    let view = merchants(&app)
        .remove_key(&request_id, &by, &merchant, &key)
        .await?;
    Ok(Json(view))
}

/// Installs the API certificate that the merchant platform issued. Control socket only.
#[utoipa::path(
    put,
    path = "/v1/wechatpay/merchants/{merchant}/certificate",
    tag = "merchants",
    params(("merchant" = MerchantId, Path, description = "Its number.")),
    request_body = InstallMerchantCertificate,
    responses((status = 200, description = "It is in use.", body = MerchantView))
)]
pub(super) async fn install_merchant_certificate(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(merchant): Path<MerchantId>,
    Json(wanted): Json<InstallMerchantCertificate>,
) -> Result<Json<MerchantView>, Problem> {
    let certificate = certificate(&wanted.certificate)?;
    let by = caller(&administrator);
    let view = merchants(&app)
        .install_certificate(&request_id, &by, &merchant, &certificate)
        .await?;
    Ok(Json(view))
}

/// Takes a platform key that a person vouches for. Control socket only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/merchants/{merchant}/platform-keys",
    tag = "merchants",
    params(("merchant" = MerchantId, Path, description = "Its number.")),
    request_body = PinPlatformKey,
    responses((status = 200, description = "It is held.", body = MerchantView))
)]
pub(super) async fn pin_platform_key(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(merchant): Path<MerchantId>,
    Json(wanted): Json<PinPlatformKey>,
) -> Result<Json<MerchantView>, Problem> {
    let pin = match (wanted.id, wanted.public_key, wanted.certificate) {
        (Some(id), Some(pem), None) => PlatformPin::PublicKey { id, pem },
        (None, None, Some(pem)) => PlatformPin::Certificate(Box::new(platform_certificate(&pem)?)),
        _ => {
            return Err(Problem::new(
                Code::Malformed,
                "either id and public_key, or certificate is needed",
            ));
        }
    };
    let by = caller(&administrator);
    let view = merchants(&app)
        .pin(&request_id, &by, &merchant, pin)
        .await?;
    Ok(Json(view))
}

/// Ends a platform key, now or at a time to come. Control socket only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/merchants/{merchant}/platform-keys/{key}/retire",
    tag = "merchants",
    params(
        ("merchant" = MerchantId, Path, description = "Its number."),
        ("key" = PlatformKeyId, Path, description = "The key's name."),
    ),
    request_body = RetirePlatformKey,
    responses((status = 200, description = "It ends then.", body = MerchantView))
)]
pub(super) async fn retire_platform_key(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path((merchant, key)): Path<(MerchantId, PlatformKeyId)>,
    Json(wanted): Json<RetirePlatformKey>,
) -> Result<Json<MerchantView>, Problem> {
    let at = match wanted.at {
        None => app.0.clock.now(),
        Some(text) => text
            .parse()
            .map_err(|error| Problem::new(Code::Malformed, format!("at: {error}")))?,
    };
    let by = caller(&administrator);
    let view = merchants(&app)
        .retire(&request_id, &by, &merchant, &key, at)
        .await?;
    Ok(Json(view))
}

/// Replaces the issuers that are trusted for platform certificates. Control socket only.
#[utoipa::path(
    put,
    path = "/v1/wechatpay/merchants/{merchant}/authorities",
    tag = "merchants",
    params(("merchant" = MerchantId, Path, description = "Its number.")),
    request_body = TrustAuthorities,
    responses((status = 200, description = "They are trusted.", body = MerchantView))
)]
pub(super) async fn trust_authorities(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(merchant): Path<MerchantId>,
    Json(wanted): Json<TrustAuthorities>,
) -> Result<Json<MerchantView>, Problem> {
    let authorities = authorities(&wanted.authorities)?;
    let by = caller(&administrator);
    let view = merchants(&app)
        .trust(&request_id, &by, &merchant, &authorities)
        .await?;
    Ok(Json(view))
}

/// Takes a secret that was sealed to a merchant's sealing key. Control socket only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/secrets",
    tag = "merchants",
    request_body = SealedSecret,
    responses((status = 200, description = "It is in use.", body = SecretSet))
)]
pub(super) async fn take_secret(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(sealed): Json<SealedSecret>,
) -> Result<Json<SecretSet>, Problem> {
    let by = caller(&administrator);
    let all = merchants(&app);
    let set = match (sealed.jwe, sealed.signed, sealed.overlap_seconds) {
        (Some(jwe), None, overlap) => {
            all.set_secret(&request_id, &by, jwe, overlap.unwrap_or(0))
                .await?
        }
        (None, Some(signed), None) => all.take_secret(&request_id, &by, &signed).await?,
        _ => {
            return Err(Problem::new(
                Code::Malformed,
                "either jwe, with overlap_seconds, or signed is needed",
            ));
        }
    };
    Ok(Json(set))
}

/// Makes requests for the secrets that an account service has for merchants here.
///
/// A courier carries them to its `POST /v1/secrets/requests`. Control socket only.
#[utoipa::path(
    post,
    path = "/v1/wechatpay/secrets/requests",
    tag = "merchants",
    request_body = AskForSecrets,
    responses((status = 200, description = "The requests.", body = SecretRequests))
)]
pub(super) async fn ask_for_secrets(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(ask): Json<AskForSecrets>,
) -> Result<Json<SecretRequests>, Problem> {
    let service = ask
        .service
        .parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("service: {error}")))?;
    let by = caller(&administrator);
    let made = merchants(&app)
        .ask_for_secrets(&request_id, &by, &service)
        .await?;
    Ok(Json(made))
}

fn caller(administrator: &Administrator) -> Caller {
    Caller::Unix {
        uid: administrator.uid,
    }
}

fn new_key(token: Option<String>, private_key: Option<SecretText>) -> Result<NewKey, Problem> {
    let token = token.map(|uri| uri.parse::<TokenUri>()).transpose();
    Ok(NewKey {
        token: token
            .map_err(|error| Problem::new(Code::Malformed, format!("token: {error}")))?
            .unwrap_or_default(),
        import: private_key
            .map(|pem| RsaPrivateKey::from_pem(&pem))
            .transpose()
            .map_err(MerchantError::PrivateKey)?,
    })
}

fn certificate(pem: &str) -> Result<Certificate, Problem> {
    read_certificate(pem, Code::MerchantCertificate)
}

fn platform_certificate(pem: &str) -> Result<Certificate, Problem> {
    read_certificate(pem, Code::WechatpayPlatformKey)
}

fn read_certificate(pem: &str, code: Code) -> Result<Certificate, Problem> {
    Certificate::from_pem(pem.trim().as_bytes())
        .map_err(|error| Problem::new(code, format!("the certificate cannot be read: {error}")))
}

fn authorities(pems: &[String]) -> Result<Vec<Certificate>, Problem> {
    if pems.len() > MOST_AUTHORITIES {
        return Err(Problem::new(
            Code::TooLarge,
            format!("there are more than {MOST_AUTHORITIES} authorities"),
        ));
    }
    pems.iter().map(|pem| platform_certificate(pem)).collect()
}
