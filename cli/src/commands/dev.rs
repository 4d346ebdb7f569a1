//! `crewcall dev`: a server with something to call.

use std::net::SocketAddr;

use clap::{Args, Command, FromArgMatches as _};
use crewcall::shutdown::Signals;

use super::{CommandError, methods::call_line, sample};
use crate::{
    config::{Config, Secret},
    exit::Exit,
    log::{LogFilter, LogFormat},
    output::Output,
    serve,
};

/// The arguments of `dev`.
#[derive(Args, Debug)]
#[command(after_help = "\
Starts a server that keeps everything in memory, and in the same process a worker with the methods add, multiply, echo,
sleep, fail and countdown. Other workers may join as with any server. Further settings are taken from the environment,
as `crewcall serve --help` names them. Ctrl-c ends both in order.")]
pub(crate) struct DevArgs {
    /// Address for gRPC and HTTP, HOST:PORT. Port 0 picks a free one
    #[arg(long, value_name = "ADDR", env = "CREWCALL_LISTEN", default_value = "127.0.0.1:8080")]
    listen: String,

    /// Secret that other workers must present to join. Default: none
    #[arg(long, value_name = "KEY", env = "CREWCALL_WORKER_KEY", hide_env_values = true)]
    worker_key: Option<Secret>,

    /// What to log to stderr: error, warn, info, debug, trace, or target=level pairs separated by commas
    #[arg(long, value_name = "FILTER", env = "CREWCALL_LOG", default_value = "warn")]
    log: LogFilter,

    /// The form of log lines
    #[arg(long, value_name = "FORMAT", env = "CREWCALL_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// Runs both until a signal ends them.
pub(crate) fn run(args: DevArgs) -> Exit {
    let config = match settings(&args) {
        Ok(config) => config,
        Err(error) => return crate::config::ParseError::from(error).report(),
    };
    let key = args.worker_key;
    serve::run_with(config, move |address| {
        Some(tokio::spawn(async move {
            if let Err(error) = work(address, key).await {
                error.report(&Output::new(false));
            }
        }))
    })
}

/// The server's settings: those of the environment, and over them what makes it a server to try things with.
fn settings(args: &DevArgs) -> Result<Config, clap::Error> {
    let matches = Config::augment_args(Command::new("dev")).try_get_matches_from(["dev"])?;
    Ok(Config {
        listen: args.listen.clone(),
        worker_key: args.worker_key.clone(),
        log: args.log.clone(),
        log_format: args.log_format,
        ephemeral: true,
        // The sample worker speaks plain HTTP/2.
        tls_cert: None,
        tls_key: None,
        ..Config::from_arg_matches(&matches)?
    })
}

/// The sample worker, over the real socket. It leaves at the signal that stops the server, before the server does.
async fn work(address: SocketAddr, key: Option<Secret>) -> Result<(), CommandError> {
    let mut signals = Signals::install()?;
    let address = reachable(address);
    let mut builder = sample::worker(format!("http://{address}"));
    if let Some(key) = key {
        builder = builder.key(key.expose());
    }
    let mut worker = builder.build()?.start();
    if worker.wait_connected().await.is_ok() {
        let lines = lines_to_try(address);
        // A parent that closed our stdout does not want to know.
        let _ = Output::new(false).bytes(lines.as_bytes());
    }
    tokio::select! {
        ended = worker.ended() => ended?,
        _ = signals.next() => {
            worker.drain();
            worker.ended().await?;
        }
    }
    Ok(())
}

/// An address that listens everywhere is reached on this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// Scripts wait for the first of these lines: then the methods are served.
fn lines_to_try(address: SocketAddr) -> String {
    let mut lines = vec![
        "worker dev serves add, multiply, echo, sleep, fail, countdown".to_owned(),
        String::new(),
        "try in another terminal:".to_owned(),
    ];
    if address.to_string() != "127.0.0.1:8080" {
        lines.push(format!("  export CREWCALL_SERVER=http://{address}"));
    }
    lines.push(format!("  {}", call_line("add", "{\"a\":1,\"b\":2}")));
    lines.push(format!(
        "  {}",
        call_line("fail", "{\"succeed_at_attempt\":3}") + " --retry 5 --backoff 100ms"
    ));
    lines.push("  crewcall watch $(crewcall submit countdown '{\"n\":10}')".to_owned());
    lines.push("  crewcall methods".to_owned());
    lines.push("  crewcall worker --method up -- tr a-z A-Z".to_owned());
    lines.push(String::new());
    lines.push("ctrl-c ends it".to_owned());
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_does_not_connect_to_everywhere() {
        for (address, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(reachable(address.parse().unwrap()).to_string(), reached);
        }
    }
}
