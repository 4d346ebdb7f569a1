//! The methods a worker serves.
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::{Context, HandlerError};
use crate::proto::{Method, Payload};

pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Payload, HandlerError>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Context, Payload) -> Running + Send + Sync>;

/// What a worker says about a method. A plain name turns into it.
#[derive(Debug, Clone, Default)]
pub struct MethodSpec {
    pub(crate) method: Method,
    pub(crate) pool: Option<String>,
    pub(crate) error: Option<String>,
}

impl MethodSpec {
    /// A method of this name; everything else may be left out.
    pub fn new(name: impl Into<String>) -> Self {
        Self { method: Method { name: name.into(), ..Method::default() }, ..Self::default() }
    }

    /// Semantic version. Default 0.0.0.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.method.version = version.into();
        self
    }

    /// One line.
    #[must_use]
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.method.summary = summary.into();
        self
    }

    /// Markdown.
    #[must_use]
    pub fn docs(mut self, docs: impl Into<String>) -> Self {
        self.method.docs = docs.into();
        self
    }

    /// An input to try; several may be given, at most 16.
    #[must_use]
    pub fn example<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
        match serde_json::to_string(input) {
            Ok(text) => self.method.examples.push(text),
            Err(error) => {
                self.error = Some(format!("an example of `{}` is no JSON: {error}", self.method.name))
            }
        }
        self
    }

    /// The pool it runs in. Default: the worker's first.
    #[must_use]
    pub fn pool(mut self, name: impl Into<String>) -> Self {
        self.pool = Some(name.into());
        self
    }

    /// JSON Schema of the input, as text; replaces the one made from the handler's type.
    #[must_use]
    pub fn input_schema(mut self, schema: impl Into<String>) -> Self {
        self.method.input_schema = schema.into();
        self
    }

    /// JSON Schema of the result, as text; replaces the one made from the handler's type.
    #[must_use]
    pub fn output_schema(mut self, schema: impl Into<String>) -> Self {
        self.method.output_schema = schema.into();
        self
    }

    /// Fills in the schemas that were not given.
    pub(crate) fn with_schemas<In: JsonSchema, Out: JsonSchema>(mut self) -> Self {
        if self.method.input_schema.is_empty() {
            self.method.input_schema = schema::<In>();
        }
        if self.method.output_schema.is_empty() {
            self.method.output_schema = schema::<Out>();
        }
        self
    }
}

impl From<&str> for MethodSpec {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for MethodSpec {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

fn schema<T: JsonSchema>() -> String {
    schemars::schema_for!(T).to_value().to_string()
}

/// A typed handler as one on payloads. The closure runs inside the future, so that a panic in it is
/// caught where the future is polled.
pub(crate) fn typed<In, Out, E, F, Fut>(handler: F) -> Handler
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + 'static,
    E: Into<HandlerError>,
    F: Fn(Context, In) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Out, E>> + Send + 'static,
{
    let handler = Arc::new(handler);
    Arc::new(move |context, payload: Payload| {
        let handler = handler.clone();
        Box::pin(async move {
            let input = payload.parse().map_err(|problem| {
                HandlerError::new("invalid_input", format!("the payload cannot be used: {problem}"))
                    .not_retryable()
            })?;
            let output = handler(context, input).await.map_err(Into::into)?;
            Payload::json(&output)
                .map_err(|error| HandlerError::new("invalid_output", error.to_string()).not_retryable())
        })
    })
}

pub(crate) fn raw<E, F, Fut>(handler: F) -> Handler
where
    E: Into<HandlerError>,
    F: Fn(Context, Payload) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Payload, E>> + Send + 'static,
{
    let handler = Arc::new(handler);
    Arc::new(move |context, payload| {
        let handler = handler.clone();
        Box::pin(async move { handler(context, payload).await.map_err(Into::into) })
    })
}

/// Handlers by method name, then version.
#[derive(Default)]
pub(crate) struct Registry {
    handlers: HashMap<String, Vec<(String, Handler)>>,
    methods: Vec<Method>,
}

impl Registry {
    /// False when this version of the method is there already.
    pub(crate) fn insert(&mut self, method: Method, handler: Handler) -> bool {
        let versions = self.handlers.entry(method.name.clone()).or_default();
        if versions.iter().any(|(version, _)| *version == method.version) {
            return false;
        }
        versions.push((method.version.clone(), handler));
        self.methods.push(method);
        true
    }

    /// The server names the version in full, where an empty one was registered as 0.0.0.
    pub(crate) fn find(&self, name: &str, version: &str) -> Option<&Handler> {
        let full = |text: &str| if text.is_empty() { "0.0.0".to_owned() } else { text.to_owned() };
        match self.handlers.get(name)?.as_slice() {
            [(_, only)] => Some(only),
            versions => versions
                .iter()
                .find(|(registered, _)| registered == version || full(registered) == full(version))
                .map(|(_, handler)| handler),
        }
    }

    pub(crate) fn methods(&self) -> &[Method] {
        &self.methods
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(entries: &[(&str, &str)]) -> Registry {
        let mut registry = Registry::default();
        for (name, version) in entries {
            let spec = MethodSpec::new(*name).version(*version);
            let handler = raw(|_, payload| async move { Ok::<_, HandlerError>(payload) });
            assert!(registry.insert(spec.method, handler));
        }
        registry
    }

    #[test]
    fn a_method_is_found_by_its_version() {
        let registry = registry(&[("add", ""), ("add", "2.0.0"), ("echo", "1.0.0")]);
        assert!(registry.find("add", "0.0.0").is_some());
        assert!(registry.find("add", "2.0.0").is_some());
        assert!(registry.find("add", "3.0.0").is_none());
        assert!(registry.find("echo", "").is_some(), "the only version needs no name");
        assert!(registry.find("sub", "").is_none());
    }

    #[test]
    fn the_same_version_twice_is_refused() {
        let mut registry = registry(&[("add", "1.0.0")]);
        let handler = raw(|_, payload| async move { Ok::<_, HandlerError>(payload) });
        assert!(!registry.insert(MethodSpec::new("add").version("1.0.0").method, handler));
    }

    #[test]
    fn schemas_come_from_the_types_unless_given() {
        let spec = MethodSpec::new("add").output_schema("{}").with_schemas::<Vec<u8>, u8>();
        assert!(spec.method.input_schema.contains("\"array\""), "{}", spec.method.input_schema);
        assert_eq!(spec.method.output_schema, "{}");
    }
}
