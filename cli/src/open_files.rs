//! The limit of open files: every connection is one.

/// Raises the soft limit to the hard one. The soft one is low (1,024) for programs that cannot handle more.
#[cfg(unix)]
pub(crate) fn raise_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let was = limit.current;
    limit.current = limit.maximum;
    let raised = setrlimit(Resource::Nofile, limit);
    let now = getrlimit(Resource::Nofile).current;
    match raised {
        Ok(()) => tracing::info!(limit = now, was, "open files"),
        // Some systems name a hard limit that they do not grant. What there is serves as well.
        Err(error) => tracing::info!(limit = now, %error, "open files; the limit could not be raised"),
    }
}

#[cfg(not(unix))]
pub(crate) fn raise_limit() {}
