//! A server that dies and comes back: always the same data directory, always another port, one address.

use std::{ffi::OsString, net::SocketAddr, path::Path, time::Duration};

use crewcall_sdk::Client;
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::harness::{Server, ServerBuilder};

/// One data directory and whatever server serves it at the time.
#[derive(Debug)]
pub(crate) struct Site {
    data: TempDir,
    limits: &'static str,
    environment: Vec<(&'static str, OsString)>,
    switch: Switch,
    server: Option<Server>,
}

/// The address that clients and workers know. It leads to the server that is up.
///
/// A port that a dead server has left could be given to anyone before the next one takes it again.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
}

impl Site {
    /// Starts the first server.
    pub(crate) async fn open(limits: &'static str) -> Self {
        Self::open_in(limits, |_| Vec::new()).await
    }

    /// Each server gets the environment made for the data directory.
    pub(crate) async fn open_in(
        limits: &'static str,
        environment: impl FnOnce(&Path) -> Vec<(&'static str, OsString)>,
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let environment = environment(data.path());
        let mut site = Self { data, limits, environment, switch: Switch::open().await, server: None };
        site.start();
        site
    }

    pub(crate) fn start(&mut self) {
        assert!(self.server.is_none(), "one at a time");
        let server = tokio::task::block_in_place(|| self.builder().start());
        self.switch.target.send_replace(Some(server.address()));
        self.server = Some(server);
    }

    /// kill -9, at whatever moment this is.
    pub(crate) fn kill(&mut self) {
        tokio::task::block_in_place(|| drop(self.server.take().expect("a server is up")));
        self.switch.target.send_replace(None);
    }

    pub(crate) fn kill_and_start(&mut self) {
        self.kill();
        self.start();
    }

    /// Puts another directory's files in the place of the dead server's.
    pub(crate) fn replace_data(&self, with: &Path) {
        assert!(self.server.is_none(), "it is dead");
        std::fs::remove_dir_all(self.data()).unwrap();
        copy_files(with, self.data());
    }

    /// Stops in order; the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let mut server = self.server.take().expect("a server is up");
        server.signal("TERM");
        let status = tokio::task::block_in_place(|| server.wait());
        self.switch.target.send_replace(None);
        status.code()
    }

    /// Waits for the server to end by itself; its exit code and what it logged.
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let mut server = self.server.take().expect("a server is up");
        let status = tokio::task::block_in_place(|| server.wait());
        self.switch.target.send_replace(None);
        (status.code(), server.log())
    }

    /// Another server for the same data directory.
    pub(crate) fn builder(&self) -> ServerBuilder {
        let builder = Server::builder().arg("--data-dir").arg(self.data()).args(["--limits", self.limits]);
        self.environment.iter().fold(builder, |builder, (name, value)| builder.env(name, value))
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("a server is up")
    }

    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    pub(crate) fn log(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    pub(crate) fn switch(&self) -> &Switch {
        &self.switch
    }

    pub(crate) fn client(&self) -> Client {
        self.switch.client()
    }
}

pub(crate) fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

impl Switch {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = watch::Sender::new(None);
        let known = target.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let target = *known.borrow();
                tokio::spawn(async move {
                    let Some(target) = target else { return };
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, target }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect_lazy(self.url()).unwrap()
    }

    /// After a request that failed: when it makes sense to ask again. The short rest is for the moment in
    /// which a server is dead and nobody has noticed.
    pub(crate) async fn up_again(&self) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let mut target = self.target.subscribe();
        target.wait_for(Option::is_some).await.expect("held by self");
    }
}
