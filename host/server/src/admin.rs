//! The admin port: the API behind its guard.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use modelhost_admin::{Admin, Reply};
use tower::ServiceExt;

use crate::body::{Lent, drain};
use crate::exchange::Exchange;
use crate::guard::{self, Allowed, Asked};
use crate::public::Public;
use crate::watch::Watch;

/// Answers what `allowed` lets through. A body that nobody reads is drained, so that its sender hears the answer.
pub(crate) fn service(
    admin: Arc<Admin>,
    public: Arc<Public>,
    allowed: Allowed,
) -> impl Service<Request<Incoming>, Response = Reply, Error = Infallible, Future: Send> + Clone {
    let routes = modelhost_admin::router(admin);
    let allowed = Arc::new(allowed);
    service_fn(move |request: Request<Incoming>| {
        let (routes, allowed) = (routes.clone(), Arc::clone(&allowed));
        let public = Arc::clone(&public);
        async move {
            let has_body = !request.body().is_end_stream();
            let checked = guard::check_admin(Asked::by(&request), has_body, &allowed);
            let (head, body) = request.into_parts();
            let watch = head.extensions.get::<Arc<Watch>>().cloned();
            let mut exchange =
                Exchange::begin(&public, "admin", &head.headers, watch.clone(), public.request_timeout);
            let (body, mut left) = Lent::new(body, watch.clone());
            let request = Request::from_parts(head, body);
            let mut reply = match checked {
                Ok(()) => routes.oneshot(request).await?,
                Err(error) => {
                    drop(request);
                    modelhost_admin::refuse(error)
                }
            };
            if let Ok(body) = left.try_recv()
                && !body.is_end_stream()
            {
                drain(body, watch.as_ref()).await;
            }
            guard::protect(reply.headers_mut(), guard::NO_PAGE);
            reply.headers_mut().extend(exchange.headers());
            let sent = reply.body().size_hint().exact().unwrap_or_default();
            exchange.answered(reply.status().as_u16(), sent);
            Ok(reply)
        }
    })
}
