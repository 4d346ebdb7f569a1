//! Compiles proto/ without a system protoc: protox parses, tonic-prost-build writes Rust.
//! Also writes the descriptor set that server reflection serves.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["task", "tasks", "worker", "admin"].map(|name| format!("crewcall/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("crewcall_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(false)
        // Payloads are shared slices of the received frame, never copied on their way through.
        .bytes(".")
        // Most tasks have none. In place they would make every task of a list three times as large, and a
        // list of empty ones, two bytes each on the wire, a burden.
        .boxed("crewcall.v1.NewTask.options")
        .compile_fds(descriptors)?;
    Ok(())
}
