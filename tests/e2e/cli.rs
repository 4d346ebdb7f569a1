//! The commands, as a person or a script uses them: what they print, where, and how they exit.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use serde_json::Value;

use crate::harness::{PATIENCE, crewcall};

mod bench;
mod calls;
mod doctor;
mod operations;
mod tasks;
mod worker;

/// A command that has ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Each line as JSON.
    #[track_caller]
    fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one line of stdout of a command that succeeded.
    #[track_caller]
    fn line(&self) -> String {
        assert_eq!((self.code, self.stdout.lines().count()), (Some(0), 1), "{self:?}");
        self.stdout.trim_end().to_owned()
    }
}

/// A command that goes on. Dropping it kills it.
#[derive(Debug)]
struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The next line of stdout.
    #[track_caller]
    fn line(&self) -> String {
        next(&self.stdout, "stdout")
    }

    /// Reads stdout up to the first line that contains the text.
    #[track_caller]
    fn until(&self, text: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The same with stderr.
    #[track_caller]
    fn until_stderr(&self, text: &str) -> String {
        loop {
            let line = next(&self.stderr, "stderr");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// By its name without SIG.
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; what it printed and nobody read is in the answer.
    #[track_caller]
    fn ended(mut self) -> Ran {
        // Both pipes end with the process, and not before.
        let rest = |lines: &Receiver<String>| {
            let mut text = String::new();
            while let Ok(line) = lines.recv_timeout(PATIENCE) {
                text.push_str(&line);
            }
            text
        };
        let (stdout, stderr) = (rest(&self.stdout), rest(&self.stderr));
        let Some(status) = self.child.try_wait().unwrap().or_else(|| self.child.wait().ok()) else {
            panic!("it cannot be waited for")
        };
        Ran { code: status.code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn next(lines: &Receiver<String>, pipe: &str) -> String {
    match lines.recv_timeout(PATIENCE) {
        Ok(line) => line.trim_end_matches('\n').to_owned(),
        Err(error) => panic!("no further line on {pipe}: {error}"),
    }
}

/// Goes on reading, so that the child never blocks on a full pipe.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = String::new();
        // With its end, if it has one: what was printed is compared to the byte.
        while pipe.read_line(&mut line).is_ok_and(|read| read > 0) {
            let _ = sender.send(std::mem::take(&mut line));
        }
    });
    receiver
}

/// `crewcall dev` on a free port: a server with methods.
#[derive(Debug)]
struct Dev {
    process: Running,
    url: String,
    /// What it printed until the methods were served, and the rest up to its last line.
    printed: Vec<String>,
}

impl Dev {
    fn start() -> Self {
        let process = Running::start(crewcall(["dev", "--listen", "127.0.0.1:0"]));
        let mut printed = Vec::new();
        while printed.last().is_none_or(|line| line != "ctrl-c ends it") {
            printed.push(process.line());
        }
        let url = printed[0].split(' ').find(|word| word.starts_with("http://")).unwrap().to_owned();
        Self { process, url, printed }
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        command(&self.url, args)
    }

    /// Runs a command to its end.
    #[track_caller]
    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        Running::start(self.command(args)).ended()
    }

    /// The same with something on stdin.
    #[track_caller]
    fn run_with<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, stdin: &str) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        running.child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        running.ended()
    }
}

/// A command that asks the server at the address.
fn command<S: AsRef<OsStr>>(url: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = crewcall(args);
    command.env("CREWCALL_SERVER", url);
    command
}

/// An address at which nobody listens.
fn nobody() -> String {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{address}")
}

#[test]
fn dev_serves_what_it_says_and_ends_with_ctrl_c() {
    let dev = Dev::start();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_crewcall"));
    let path = std::env::var("PATH").unwrap();
    // The lines to try, tried as they stand. The last one is a worker, which would go on.
    let tries: Vec<&String> = dev.printed.iter().filter(|line| line.starts_with("  ")).collect();
    assert_eq!(tries.len(), 6, "{:?}", dev.printed);
    let script = tries[..5].iter().fold(String::new(), |script, line| script + line.trim() + " || exit\n");
    let script = script.replace("{\"n\":10}", "{\"n\":2,\"every_ms\":1}");
    let mut shell = Command::new("sh");
    shell.env("PATH", format!("{}:{path}", binary.parent().unwrap().display())).args(["-c", &script]);
    let ran = Running::start(shell).ended();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.starts_with("3\n\"succeeded at attempt 3\"\n"), "{ran:?}");
    assert!(ran.stdout.contains("\"liftoff\"") && ran.stdout.contains("Adds two numbers"), "{ran:?}");

    dev.process.signal("INT");
    let ended = dev.process.ended();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "in order, and without a word");
}

#[test]
fn nobody_there_is_said_with_the_address_and_what_to_do() {
    let url = nobody();
    for args in [
        vec!["call", "add"],
        vec!["submit", "add"],
        vec!["get", "x"],
        vec!["watch", "x"],
        vec!["cancel", "x"],
        vec!["retry", "x"],
        vec!["tasks"],
        vec!["explain", "x"],
        vec!["workers"],
        vec!["methods"],
        vec!["stats"],
        vec!["drain", "x"],
        vec!["pause", "x"],
        vec!["resume", "x"],
        vec!["dead", "list"],
        vec!["dead", "show", "x"],
        vec!["dead", "retry", "x"],
        vec!["dead", "discard", "--all"],
        vec!["backup", "--name", "x"],
    ] {
        let ran = Running::start(command(&url, &args)).ended();
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(10), ""), "{args:?}: {ran:?}");
        for part in [url.as_str(), "crewcall serve", "crewcall dev", "CREWCALL_SERVER"] {
            assert!(ran.stderr.contains(part), "{args:?}: {ran:?}");
        }
        let ran = Running::start(command(&url, args.iter().chain(&["--json"]))).ended();
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!((&error["error"]["reason"], &error["exit_code"]), (&"unreachable".into(), &10.into()));
    }
}

#[test]
fn an_address_that_cannot_be_one_is_a_mistake_of_usage() {
    for url in ["ftp://127.0.0.1:1", "http://", "127.0.0.1:1/path"] {
        let ran = Running::start(command(url, ["stats"])).ended();
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(url) && ran.stderr.contains("--server"), "{ran:?}");
    }
}

#[test]
fn help_names_every_command_and_exit_code() {
    let ran = Running::start(crewcall(["--help"])).ended();
    for word in [
        "serve", "dev", "call", "submit", "get", "watch", "cancel", "retry", "tasks", "explain", "workers",
        "methods", "stats", "drain", "worker", "pause", "resume", "dead", "backup",
    ] {
        assert!(ran.stdout.lines().any(|line| line.trim_start().starts_with(&format!("{word} "))), "{word}");
        let help = Running::start(crewcall([word, "--help"])).ended();
        assert_eq!(help.code, Some(0), "{word}: {help:?}");
    }
    for code in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 130] {
        assert!(ran.stdout.contains(&format!("\n  {code} ")), "{code}: {}", ran.stdout);
    }
    let version = Running::start(crewcall(["--version"])).ended();
    assert_eq!(version.line(), format!("crewcall {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let dev = Dev::start();
    let mut command = dev.command(["watch", "--method", "echo"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    dev.run(["call", "echo", "1"]).line();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

/// On a terminal, as `script` makes one: results are laid out, and a person is told why nothing happens.
#[test]
#[cfg(target_os = "linux")]
fn a_terminal_is_for_people() {
    let dev = Dev::start();
    let on_terminal = |args: &str| {
        let mut script = Command::new("script");
        let line = format!("{} {args}", env!("CARGO_BIN_EXE_crewcall"));
        script.env("CREWCALL_SERVER", &dev.url).args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
        Running::start(script)
    };
    let ran = on_terminal("call echo '{\"a\":[1,{}]}'").ended();
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "{\r\n  \"a\": [\r\n    1,\r\n    {}\r\n  ]\r\n}\r\n")
    );

    let waiting = on_terminal("call nobody.serves.it");
    let hint = waiting.until("no worker serves `nobody.serves.it` yet");
    let id = hint.split("crewcall explain ").nth(1).unwrap().split('`').next().unwrap();
    dev.run(["cancel", id]).line();
    assert_eq!(waiting.ended().code, Some(6));

    let id = dev.run(["submit", "countdown", "{\"n\":2,\"every_ms\":1}"]).line();
    let coloured = on_terminal(&format!("watch {id}")).ended().stdout;
    assert!(coloured.contains("\x1b[32mfinished\x1b[0m \"liftoff\""), "{coloured}");
    let plain = dev.run(["watch", &id]).stdout;
    assert!(!plain.contains('\x1b'), "{plain}");
}

/// A file with the text, in a directory that goes with it.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}
