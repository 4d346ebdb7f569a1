//! A server over real sockets whose every frame the test writes itself.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::proto::{PipeRequest, PipeResponse, SessionRequest, SessionResponse};

/// One stream as the server sees it.
pub(crate) struct Conversation<In, Out> {
    pub(crate) authorization: Option<String>,
    inbound: Streaming<In>,
    // Taken when the server ends the stream.
    outbound: Option<mpsc::UnboundedSender<Result<Out, Status>>>,
}

pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    pub(crate) sessions: mpsc::UnboundedReceiver<Conversation<SessionRequest, SessionResponse>>,
    pub(crate) pipes: mpsc::UnboundedReceiver<Conversation<PipeRequest, PipeResponse>>,
}

impl FakeServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sessions_to, sessions) = mpsc::unbounded_channel();
        let (pipes_to, pipes) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder()
            .add_service(WorkerService(Accept(sessions_to)))
            .add_service(TasksService(Accept(pipes_to)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, sessions, pipes }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl<In, Out> Conversation<In, Out> {
    /// The next frame; a stream that is over or broken has none.
    pub(crate) async fn frame(&mut self) -> Option<In> {
        self.inbound.next().await.and_then(Result::ok)
    }

    pub(crate) fn send(&self, frame: Out) {
        self.outbound.as_ref().unwrap().send(Ok(frame)).ok().unwrap();
    }

    /// Ends the stream with OK.
    pub(crate) fn end(&mut self) {
        self.outbound = None;
    }

    pub(crate) fn fail(&mut self, status: Status) {
        self.outbound.take().unwrap().send(Err(status)).ok().unwrap();
    }
}

struct Accept<In, Out>(mpsc::UnboundedSender<Conversation<In, Out>>);

impl<In, Out> Clone for Accept<In, Out> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<In: Send + 'static, Out: Send + 'static> StreamingService<In> for Accept<In, Out> {
    type Response = Out;
    type ResponseStream = UnboundedReceiverStream<Result<Out, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<In>>) -> Self::Future {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        let (sender, outbound) = mpsc::unbounded_channel();
        let inbound = request.into_inner();
        // A test that has seen enough has gone; the stream then ends at once.
        let _ = self.0.send(Conversation { authorization, inbound, outbound: Some(sender) });
        Box::pin(async move { Ok(Response::new(UnboundedReceiverStream::new(outbound))) })
    }
}

macro_rules! service {
    ($service:ident, $name:literal, $in:ty, $out:ty) => {
        #[derive(Clone)]
        struct $service(Accept<$in, $out>);

        impl NamedService for $service {
            const NAME: &'static str = $name;
        }

        impl Service<http::Request<Body>> for $service {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = BoxFuture<Self::Response, Infallible>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                let accept = self.0.clone();
                Box::pin(async move {
                    let codec = ProstCodec::<$out, $in>::default();
                    Ok(Grpc::new(codec).streaming(accept, request).await)
                })
            }
        }
    };
}

service!(WorkerService, "crewcall.v1.Worker", SessionRequest, SessionResponse);
service!(TasksService, "crewcall.v1.Tasks", PipeRequest, PipeResponse);
