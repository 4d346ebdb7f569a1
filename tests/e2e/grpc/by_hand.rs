//! A worker whose every frame the test writes itself.

use crewcall_sdk::proto::{
    Assign, Credit, Hello, Method, Payload, Pool, Result as AttemptResult, SessionRequest, SessionResponse,
    Welcome, result::Kind, worker_client::WorkerClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

use super::{connect, soon};

#[derive(Debug)]
pub(crate) struct Hand {
    pub(crate) welcome: Welcome,
    outbound: mpsc::UnboundedSender<SessionRequest>,
    inbound: Streaming<SessionResponse>,
}

/// What a worker says first, when it serves one method.
pub(crate) fn hello(worker_id: &str, method: &str, concurrency: u32) -> Hello {
    Hello {
        worker_id: worker_id.to_owned(),
        boot_id: format!("boot of {worker_id}"),
        pools: vec![Pool { name: String::new(), concurrency }],
        methods: vec![Method { name: method.to_owned(), ..Method::default() }],
        ..Hello::default()
    }
}

pub(crate) fn result(lease: u64, seq: u64, json: &str) -> AttemptResult {
    let payload = Payload { data: json.to_owned().into(), content_type: String::new() };
    AttemptResult { lease, seq, kind: Some(Kind::Succeeded(payload)) }
}

pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

impl Hand {
    /// Says hello and waits for the welcome.
    pub(crate) async fn join(url: &str, hello: Hello) -> Result<Self, Status> {
        let (outbound, frames) = mpsc::unbounded_channel();
        outbound.send(SessionRequest { hello: Some(hello), ..SessionRequest::default() }).unwrap();
        let mut client = WorkerClient::new(connect(url).await);
        let mut inbound = soon(client.session(UnboundedReceiverStream::new(frames))).await?.into_inner();
        let first = soon(inbound.message()).await?.expect("no welcome");
        Ok(Self { welcome: first.welcome.expect("the first frame was no welcome"), outbound, inbound })
    }

    pub(crate) fn say(&self, frame: SessionRequest) {
        // Fails when the stream is over; the next `hear` will tell.
        let _ = self.outbound.send(frame);
    }

    pub(crate) fn credit(&self, total: u64) {
        let credits = vec![Credit { pool: String::new(), total }];
        self.say(SessionRequest { credits, ..SessionRequest::default() });
    }

    pub(crate) fn results(&self, results: Vec<AttemptResult>) {
        self.say(SessionRequest { results, ..SessionRequest::default() });
    }

    /// The next frame; `None` at the normal end.
    pub(crate) async fn hear(&mut self) -> Result<Option<SessionResponse>, Status> {
        soon(self.inbound.message()).await
    }

    /// The next frame that is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&SessionResponse) -> bool) -> SessionResponse {
        loop {
            let frame = self.hear().await.unwrap().expect("the server ended the session");
            if wanted(&frame) {
                return frame;
            }
        }
    }

    pub(crate) async fn assigned(&mut self) -> Assign {
        let mut frame = self.until(|frame| !frame.assign.is_empty()).await;
        assert_eq!(frame.assign.len(), 1);
        frame.assign.remove(0)
    }

    /// Reads until the session is over.
    pub(crate) async fn ended(&mut self) -> Result<(), Status> {
        while self.hear().await?.is_some() {}
        Ok(())
    }
}
