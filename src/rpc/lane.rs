//! A service of generated code whose one stream of many entries is served apart, with frames that write themselves.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming, body::Body};
use tonic_prost::ProstDecoder;
use tower::Service;

use super::frames::Frame;

/// A stream in both directions.
pub(super) trait Lane: Clone + Send + Sync + 'static {
    /// Its path in the contract.
    const PATH: &'static str;
    /// What the client says.
    type In: prost::Message + Default;
    /// What it is told.
    type Out: Frame;
    /// Where that comes from.
    type Frames: Stream<Item = Result<Self::Out, Status>> + Send + 'static;

    /// A client has opened it.
    fn open(
        self,
        request: Request<Streaming<Self::In>>,
    ) -> impl Future<Output = Result<Response<Self::Frames>, Status>> + Send + 'static;
}

/// `lane`, and everything else that `rest` serves.
#[derive(Clone)]
pub(super) struct WithLane<S, L> {
    rest: S,
    lane: L,
    most: usize,
}

impl<S, L> WithLane<S, L> {
    /// `most` bytes in a message of the client.
    pub(super) fn new(rest: S, lane: L, most: usize) -> Self {
        Self { rest, lane, most }
    }
}

impl<S: NamedService, L> NamedService for WithLane<S, L> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S, L> Service<http::Request<Body>> for WithLane<S, L>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future = Answer>,
    L: Lane,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.rest.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        if request.uri().path() != L::PATH {
            return self.rest.call(request);
        }
        let lane = Opening(self.lane.clone());
        let mut grpc = Grpc::new(FrameCodec::<L::Out, L::In>::default())
            .max_decoding_message_size(self.most)
            .max_encoding_message_size(usize::MAX);
        Box::pin(async move { Ok(grpc.streaming(lane, request).await) })
    }
}

struct Opening<L>(L);

impl<L: Lane> StreamingService<L::In> for Opening<L> {
    type Response = L::Out;
    type ResponseStream = L::Frames;
    type Future = Pin<Box<dyn Future<Output = Result<Response<L::Frames>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<L::In>>) -> Self::Future {
        Box::pin(self.0.clone().open(request))
    }
}

/// Writes frames, reads messages.
struct FrameCodec<F, M>(PhantomData<(F, M)>);

impl<F, M> Default for FrameCodec<F, M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<F: Frame, M: prost::Message + Default + 'static> Codec for FrameCodec<F, M> {
    type Encode = F;
    type Decode = M;
    type Encoder = FrameEncoder<F>;
    type Decoder = ProstDecoder<M>;

    fn encoder(&mut self) -> FrameEncoder<F> {
        FrameEncoder(PhantomData)
    }

    fn decoder(&mut self) -> ProstDecoder<M> {
        ProstDecoder::default()
    }
}

struct FrameEncoder<F>(PhantomData<F>);

impl<F> fmt::Debug for FrameEncoder<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameEncoder")
    }
}

impl<F: Frame> Encoder for FrameEncoder<F> {
    type Item = F;
    type Error = Status;

    fn encode(&mut self, frame: F, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(frame.size());
        frame.write(buf);
        Ok(())
    }
}
