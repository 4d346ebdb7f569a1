//! The gRPC edge: the public contract of `proto/crewcall/v1`, translated. No rule lives here.

use std::fmt;

use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::handle::Handle;
use crate::proto::admin_server::AdminServer;
use crate::proto::tasks_server::TasksServer;
use crate::proto::worker_server::WorkerServer;
use crate::shutdown::Shutdown;
use lane::WithLane;

mod admin;
mod convert;
mod download;
mod frames;
mod lane;
mod status;
mod tasks;
mod worker;

/// What the edge needs to know beyond the limits of the engine.
#[derive(Clone, Default)]
pub struct RpcSettings {
    /// When set, a worker must show it. Compared in constant time, never logged.
    pub worker_key: Option<String>,
    /// Once it is stopping, the health service says NOT_SERVING.
    pub shutdown: Shutdown,
}

impl fmt::Debug for RpcSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcSettings").field("worker_key", &self.worker_key.as_ref().map(|_| "***")).finish()
    }
}

/// All services, health and reflection included. Must be called within a tokio runtime.
pub async fn routes(handle: &Handle, settings: &RpcSettings) -> Routes {
    let most = handle.limits().message_bytes();
    let tasks = tasks::TasksEdge::new(handle.clone());
    let server =
        TasksServer::new(tasks.clone()).max_decoding_message_size(most).max_encoding_message_size(usize::MAX);
    let tasks = WithLane::new(server, tasks, most);
    let worker = worker::WorkerEdge::new(handle.clone(), settings.worker_key.clone());
    let worker = WithLane::new(WorkerServer::new(worker.clone()), worker, most);
    let admin = AdminServer::new(admin::AdminEdge::new(handle.clone()));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<TasksServer<tasks::TasksEdge>>().await;
    reporter.set_serving::<WorkerServer<worker::WorkerEdge>>().await;
    reporter.set_serving::<AdminServer<admin::AdminEdge>>().await;
    tokio::spawn(report_stopping(reporter, settings.shutdown.clone()));
    let mut routes = Routes::new(tasks).add_service(worker).add_service(admin).add_service(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that grpcurl can show the details of an error.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    match reflection {
        Ok(service) => routes = routes.add_service(service),
        // Only a broken build gets here; calls work without it.
        Err(problem) => tracing::error!(%problem, "server reflection is off"),
    }
    routes
}

/// Load balancers stop sending as soon as the server begins to stop.
async fn report_stopping(reporter: HealthReporter, shutdown: Shutdown) {
    shutdown.stopping().await;
    reporter.set_service_status("", ServingStatus::NotServing).await;
    reporter.set_not_serving::<TasksServer<tasks::TasksEdge>>().await;
    reporter.set_not_serving::<WorkerServer<worker::WorkerEdge>>().await;
    reporter.set_not_serving::<AdminServer<admin::AdminEdge>>().await;
}
