//! `disk_shim.c` as a library, built where it is needed: also the end-to-end tests preload it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Built once in each run. The bundled SQLite has to be compiled, so there is a C compiler.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk_shim.so");
        // Under another name first: another run of the tests may be using the present one.
        let new = library.with_extension(format!("{}.so", std::process::id()));
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&new)
            .args(["-x", "c", "-", "-ldl", "-lpthread"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("a C compiler, which the bundled SQLite needs as well");
        compiler.stdin.take().unwrap().write_all(include_bytes!("disk_shim.c")).unwrap();
        assert!(compiler.wait().unwrap().success(), "the shim does not compile");
        fs::rename(new, &library).unwrap();
        library
    })
}
