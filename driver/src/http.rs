//! HTTP for Kubernetes and Prometheus: `/livez`, `/readyz`, `/metrics`.
//!
//! Liveness says only that this process still answers: a gateway or a kubelet that is away must never make Kubernetes
//! restart the driver.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};

use crate::metrics::Metrics;

/// The media type of what [`prometheus_client::encoding::text`] writes (OpenMetrics 1.0.0, section "Overall structure").
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Says whether the process can do its work, or why not yet.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be had.
    #[error("--http-listen {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended.
    #[error("HTTP server")]
    Serve(#[source] io::Error),
}

/// Serves until `stop` is ready.
pub async fn serve(
    address: SocketAddr,
    ready: Ready,
    metrics: Metrics,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), HttpError> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| HttpError::Listen { address, source })?;
    tracing::info!(%address, "serving /livez, /readyz and /metrics");
    axum::serve(listener, router(ready, metrics))
        .with_graceful_shutdown(stop)
        .await
        .map_err(HttpError::Serve)
}

fn router(ready: Ready, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async move || match ready() {
                Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
            }),
        )
        .route(
            "/metrics",
            get(async move || match metrics.text().await {
                Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }),
        )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let answer = router.clone().oneshot(request).await.expect("infallible");
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn it_is_alive_at_once_and_ready_when_it_says_so() {
        let able = Arc::new(AtomicBool::new(false));
        let ready: Ready = {
            let able = Arc::clone(&able);
            Arc::new(move || {
                if able.load(Ordering::Relaxed) {
                    Ok(())
                } else {
                    Err("not registered".to_owned())
                }
            })
        };
        let counted = Metrics::of_controller();
        let took = std::time::Duration::from_millis(20);
        counted
            .calls()
            .ended("/csi.v1.Controller/CreateVolume", tonic::Code::Ok, took);
        let router = router(ready, counted);
        assert_eq!(ask(&router, "/livez").await, (StatusCode::OK, "ok\n".to_owned()));
        let (status, why) = ask(&router, "/readyz").await;
        assert_eq!(
            (status, why.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "not registered\n")
        );
        able.store(true, Ordering::Relaxed);
        assert_eq!(ask(&router, "/readyz").await.0, StatusCode::OK);
        let (_, metrics) = ask(&router, "/metrics").await;
        for line in [
            r#"storagelink_csi_calls_total{method="CreateVolume",code="Ok"} 1"#,
            r#"storagelink_csi_call_duration_seconds_count{method="CreateVolume"} 1"#,
            "storagelink_build_info{version=",
        ] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
    }
}
