//! Webhook subscriptions of the platform: who is told of operations, and what became of each
//! delivery.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::operations::{Platform, Scope, idempotency, once};
use super::problem::Refused;
use crate::account::idempotency::IdempotencyConflict;
use crate::account::outgoing::{Endpoint, trust};
use crate::account::service::Service;
use crate::account::store::StoreError;
use crate::account::store::outbox::{self, Delivery, Subscription};
use crate::account::webhooks::SECRET_DOMAIN;
use crate::api::extract::{Json, Path, Query};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::audit::AuditError;
use crate::base::encoding::{base64, base64url, sha256};
use crate::base::ids::{Jti, OperationId, RequestId, random};
use axum::Extension;

/// Longest URL, in bytes.
const URL_MAX: usize = 1024;

/// Deliveries of one list.
const PAGE: i64 = 200;

/// A new subscription.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionRequest {
    /// An `https` URL of at most 1024 characters.
    pub url: String,
}

/// A subscription.
#[derive(Debug, Serialize, ToSchema)]
pub struct SubscriptionView {
    /// Its id.
    pub id: String,
    /// Where to.
    pub url: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

impl From<Subscription> for SubscriptionView {
    fn from(subscription: Subscription) -> Self {
        Self {
            id: subscription.id,
            url: subscription.url,
            created_at: subscription.created_at.to_string(),
        }
    }
}

/// A subscription that was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct SubscriptionAnswer {
    /// The subscription.
    pub subscription: SubscriptionView,
    /// The secret that signs what it is told; shown this once.
    pub secret: String,
}

/// The subscriptions.
#[derive(Debug, Serialize, ToSchema)]
pub struct SubscriptionsAnswer {
    /// Oldest first.
    pub subscriptions: Vec<SubscriptionView>,
}

/// Subscribes to what becomes of operations.
#[utoipa::path(
    post,
    path = "/v1/webhooks",
    tag = "operations",
    security(("platform-key" = [])),
    params(("idempotency-key" = Option<String>, Header, description = "1 to 128 visible ASCII characters; the same request with it gets the same subscription")),
    request_body = SubscriptionRequest,
    responses(
        (status = 201, body = SubscriptionAnswer),
        (status = 400, description = "malformed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "idempotency-conflict", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn subscribe(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    platform: Platform,
    headers: HeaderMap,
    Json(body): Json<SubscriptionRequest>,
) -> Result<(StatusCode, Json<SubscriptionAnswer>), Refused> {
    platform.may(Scope::Webhooks)?;
    let bad = |reason: &str| Problem::new(Code::Malformed, format!("url {reason}"));
    if body.url.len() > URL_MAX {
        return Err(bad("has more than 1024 characters").into());
    }
    let settings = trust(None).map_err(|error| {
        tracing::error!(error = %crate::telemetry::Chain(&error), "cannot trust any certificate");
        Problem::new(Code::Internal, "no certificate can be trusted")
    })?;
    Endpoint::new(&body.url, settings, &[0; 32]).map_err(|_| bad("must be an https URL"))?;
    // The key decides the id, so that a repetition finds what the first request made, and the
    // secret needs no place among the kept answers.
    let key = idempotency(&platform.key, &headers, "POST /v1/webhooks", &body)?;
    let id = match &key {
        Some(key) => {
            let text = format!("subscription\0{}\0{}", key.principal, key.key);
            base64url(&sha256(text.as_bytes())[..16])
        }
        None => Jti::random().to_string(),
    };
    let secret = base64(&random::<32>());
    let sealed = service
        .sealer()
        .seal(SECRET_DOMAIN, &id, secret.as_bytes())
        .map_err(|_| Problem::new(Code::Internal, "the secret could not be sealed"))?;
    let row = &Subscription {
        id,
        platform_key: platform.key,
        url: body.url,
        secret: sealed,
        created_at: service.clock().now(),
    };
    let (records, request) = (service.records(), &request_id);
    let kept = service
        .store()
        .transaction("subscribe", move |tx| {
            Box::pin(async move {
                match outbox::subscription_ever(tx, &row.id).await? {
                    Some((found, None)) => return Ok(found),
                    // The key stands for one that is over: it makes no other.
                    Some((_, Some(_))) => return Err(IdempotencyConflict.into()),
                    None => (),
                }
                outbox::subscribe(tx, row).await?;
                let facts = json!({
                    "subscription": row.id, "url": row.url, "platform_key": row.platform_key,
                });
                records.write("webhook-subscribed", request, &facts).await?;
                Ok::<_, SubscribeError>(row.clone())
            })
        })
        .await?;
    if kept.url != row.url {
        return Err(Problem::from(IdempotencyConflict).into());
    }
    let secret = service
        .sealer()
        .open(SECRET_DOMAIN, &kept.id, &kept.secret)
        .map_err(|_| Problem::new(Code::Internal, "the secret could not be opened"))?;
    let secret = String::from_utf8_lossy(secret.expose()).into_owned();
    Ok((
        StatusCode::CREATED,
        Json(SubscriptionAnswer {
            subscription: kept.into(),
            secret,
        }),
    ))
}

/// Why a subscription was not made or ended.
#[derive(Debug, thiserror::Error)]
enum SubscribeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Conflict(#[from] IdempotencyConflict),
}

impl From<SubscribeError> for Problem {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Store(error) => error.into(),
            SubscribeError::Audit(error) => error.into(),
            SubscribeError::Conflict(error) => error.into(),
        }
    }
}

/// The subscriptions.
#[utoipa::path(
    get,
    path = "/v1/webhooks",
    tag = "operations",
    security(("platform-key" = [])),
    responses(
        (status = 200, body = SubscriptionsAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn subscriptions(
    State(service): State<Service>,
    platform: Platform,
) -> Result<Json<SubscriptionsAnswer>, Refused> {
    platform.may(Scope::Webhooks)?;
    let found = service
        .store()
        .read("list subscriptions", |tx| {
            Box::pin(outbox::subscriptions(tx))
        })
        .await
        .map_err(|error: StoreError| error)?;
    Ok(Json(SubscriptionsAnswer {
        subscriptions: found.into_iter().map(Into::into).collect(),
    }))
}

/// Ends a subscription; what still waits for it is given up.
#[utoipa::path(
    delete,
    path = "/v1/webhooks/{id}",
    tag = "operations",
    security(("platform-key" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn unsubscribe(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    platform: Platform,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    platform.may(Scope::Webhooks)?;
    let now = service.clock().now();
    let (id, key, records, request) = (&id, &platform.key, service.records(), &request_id);
    let ended = service
        .store()
        .transaction("unsubscribe", move |tx| {
            Box::pin(async move {
                if !outbox::unsubscribe(tx, id, now).await? {
                    return Ok(false);
                }
                let facts = json!({ "subscription": id, "platform_key": key });
                records.write("webhook-ended", request, &facts).await?;
                Ok::<_, SubscribeError>(true)
            })
        })
        .await?;
    if ended {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown().into())
    }
}

fn unknown() -> Problem {
    Problem::new(Code::NotFound, "there is no such subscription or delivery")
        .with_action("See what there is with GET /v1/webhooks.")
}

/// Which deliveries a list shows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryQuery {
    /// Only those given up.
    #[serde(default)]
    pub dead: bool,
}

/// A delivery.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryView {
    /// Its id.
    pub id: String,
    /// The event, as in `webhook-id`.
    pub event: String,
    /// The operation.
    pub operation: OperationId,
    /// Its place among the events of the operation.
    pub place: i64,
    /// `waiting`, `delivered` or `dead`.
    pub state: &'static str,
    /// Tries so far.
    pub attempts: i64,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was written, RFC 3339.
    pub created_at: String,
    /// When the next try is due, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        let state = if delivery.delivered_at.is_some() {
            "delivered"
        } else if delivery.abandoned_at.is_some() {
            "dead"
        } else {
            "waiting"
        };
        Self {
            id: delivery.notice.id,
            event: delivery.notice.event,
            operation: delivery.notice.operation,
            place: delivery.notice.place,
            state,
            attempts: delivery.notice.attempts,
            error: delivery.error,
            created_at: delivery.created_at.to_string(),
            next_attempt_at: (state == "waiting").then(|| delivery.next_attempt_at.to_string()),
        }
    }
}

/// Deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveriesAnswer {
    /// Newest first, at most 200.
    pub deliveries: Vec<DeliveryView>,
}

/// What became of the deliveries of a subscription.
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}/deliveries",
    tag = "operations",
    security(("platform-key" = [])),
    params(("id" = String, Path), DeliveryQuery),
    responses(
        (status = 200, body = DeliveriesAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn deliveries(
    State(service): State<Service>,
    platform: Platform,
    Path(id): Path<String>,
    query: Result<Query<DeliveryQuery>, Problem>,
) -> Result<Json<DeliveriesAnswer>, Refused> {
    platform.may(Scope::Webhooks)?;
    let Query(query) = query?;
    let id = id.as_str();
    let found = service
        .store()
        .read("list deliveries", move |tx| {
            Box::pin(outbox::deliveries(tx, id, query.dead, PAGE))
        })
        .await
        .map_err(|error: StoreError| error)?;
    Ok(Json(DeliveriesAnswer {
        deliveries: found.into_iter().map(Into::into).collect(),
    }))
}

/// Sends a delivery again, whatever became of it.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/deliveries/{delivery}/replay",
    tag = "operations",
    security(("platform-key" = [])),
    params(("id" = String, Path), ("delivery" = String, Path), ("idempotency-key" = Option<String>, Header, description = "1 to 128 visible ASCII characters; the same request with it sends nothing again")),
    responses(
        (status = 202),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "idempotency-conflict", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn replay(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    platform: Platform,
    Path((id, delivery)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Refused> {
    platform.may(Scope::Webhooks)?;
    let line = format!("POST /v1/webhooks/{id}/deliveries/{delivery}/replay");
    let key = idempotency(&platform.key, &headers, &line, &())?;
    let replayed = once(&service, key, StatusCode::ACCEPTED, async {
        send_again(&service, &id, &delivery, &request_id).await?;
        Ok(String::new())
    });
    replayed.await?;
    Ok(StatusCode::ACCEPTED)
}

async fn send_again(
    service: &Service,
    id: &str,
    delivery: &str,
    request: &RequestId,
) -> Result<(), Problem> {
    let (now, records) = (service.clock().now(), service.records());
    let due = service
        .store()
        .transaction("replay delivery", move |tx| {
            Box::pin(async move {
                if !outbox::replay(tx, id, delivery, now).await? {
                    return Ok(false);
                }
                let facts = json!({ "subscription": id, "delivery": delivery });
                records.write("webhook-replayed", request, &facts).await?;
                Ok::<_, SubscribeError>(true)
            })
        })
        .await?;
    if !due {
        return Err(unknown());
    }
    service.outbox_changed();
    Ok(())
}
