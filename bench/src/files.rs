//! How many files and sockets a process may have open.

/// Raises the limit to what the system allows. Processes started from here on have it too.
///
/// Where it cannot be raised, thousands of connections fail with the reason; everything else does not need it.
#[cfg(unix)]
pub(crate) fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // A refusal changes nothing, and whoever needs more will say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[cfg(not(unix))]
pub(crate) fn raise_limit() {}
