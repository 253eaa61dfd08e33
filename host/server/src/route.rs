//! Paths, taken apart. A model's name is the two segments after `models`; stock clients send its slash unescaped.

use hyper::Method;
use modelhost_serving::Target;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Route<'a> {
    Root,
    Metrics,
    ServerMetadata,
    Live,
    Ready,
    Models,
    ModelMetadata(Target<'a>),
    ModelReady(Target<'a>),
    ModelConfig(Target<'a>),
    Statistics(Option<Target<'a>>),
    Infer(Target<'a>),
    Index,
    Load(&'a str),
    Unload(&'a str),
    TraceSettings(Option<Target<'a>>),
    LogSettings,
    /// The short URL.
    Model(Target<'a>),
    OpenApi(Target<'a>),
    Docs(Target<'a>),
    Asset(&'a str),
    V1Predict(Target<'a>),
    /// What TF Serving or KServe have and nothing here does.
    V1Unsupported(Target<'a>, &'a str),
    V1Status(Target<'a>),
    V1Metadata(Target<'a>),
    /// The default model's without a target.
    Ping(Option<Target<'a>>),
    Version,
    Invocations(Option<Target<'a>>),
}

impl<'a> Route<'a> {
    /// What the path names, if it names anything.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let first = path.strip_prefix('/')?.split('/').next()?;
        match first {
            "v2" => open_inference(path.strip_prefix("/v2")?),
            "models" if matches!(path, "/models" | "/models/") => Some(Self::Root),
            "models" => short(path.strip_prefix("/models/")?),
            "assets" => Some(Self::Asset(path.strip_prefix("/assets/")?)),
            "v1" => v1(path.strip_prefix("/v1/models")?),
            "ping" | "health" | "version" | "invocations" => mlflow(path.strip_prefix('/')?, None),
            "" if path == "/" => Some(Self::Root),
            "metrics" if path == "/metrics" => Some(Self::Metrics),
            _ => None,
        }
    }

    /// The methods it answers.
    pub(crate) fn methods(&self) -> &'static [Method] {
        match self {
            Self::Infer(_) | Self::Index | Self::Load(_) | Self::Unload(_) => &[Method::POST],
            Self::V1Predict(_) | Self::V1Unsupported(..) | Self::Invocations(_) => &[Method::POST],
            Self::TraceSettings(_) | Self::LogSettings | Self::Model(_) => &[Method::GET, Method::POST],
            _ => &[Method::GET],
        }
    }

    /// The metric label.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Metrics => "metrics",
            Self::ServerMetadata => "server_metadata",
            Self::Live | Self::Ready => "health",
            Self::Models => "models",
            Self::ModelMetadata(_) => "model_metadata",
            Self::ModelReady(_) => "model_ready",
            Self::ModelConfig(_) => "model_config",
            Self::Statistics(_) => "statistics",
            Self::Infer(_) => "infer",
            Self::Index | Self::Load(_) | Self::Unload(_) => "repository",
            Self::TraceSettings(_) | Self::LogSettings => "settings",
            Self::Model(_) => "model",
            Self::OpenApi(_) | Self::Docs(_) | Self::Asset(_) => "docs",
            Self::V1Predict(_) | Self::V1Unsupported(..) => "v1_predict",
            Self::V1Status(_) => "v1_status",
            Self::V1Metadata(_) => "v1_metadata",
            Self::Ping(_) | Self::Version => "ping",
            Self::Invocations(_) => "invocations",
        }
    }
}

/// `/v2…`: the Open Inference Protocol.
fn open_inference(rest: &str) -> Option<Route<'_>> {
    match rest {
        "" | "/" => return Some(Route::ServerMetadata),
        "/health/live" => return Some(Route::Live),
        "/health/ready" => return Some(Route::Ready),
        "/models" | "/models/" => return Some(Route::Models),
        "/models/stats" => return Some(Route::Statistics(None)),
        "/repository/index" => return Some(Route::Index),
        "/trace/setting" => return Some(Route::TraceSettings(None)),
        "/logging" => return Some(Route::LogSettings),
        _ => {}
    }
    if let Some(rest) = rest.strip_prefix("/repository/models/") {
        return match split_name(rest)? {
            (model, "load") => Some(Route::Load(model)),
            (model, "unload") => Some(Route::Unload(model)),
            _ => None,
        };
    }
    let (target, verb) = target(rest.strip_prefix("/models/")?)?;
    match verb {
        "" => Some(Route::ModelMetadata(target)),
        "ready" => Some(Route::ModelReady(target)),
        "config" => Some(Route::ModelConfig(target)),
        "stats" => Some(Route::Statistics(Some(target))),
        "infer" => Some(Route::Infer(target)),
        "trace/setting" => Some(Route::TraceSettings(Some(target))),
        _ => None,
    }
}

/// `/models/{prefix}/{name}/…`: the short form.
fn short(rest: &str) -> Option<Route<'_>> {
    let (model, rest) = split_name(rest)?;
    if let Some(route) = below_model(rest, Target { model, version: None }) {
        return Some(route);
    }
    let (version, verb) = rest.split_once('/').unwrap_or((rest, ""));
    below_model(verb, Target { model, version: Some(version) })
}

/// What follows a model or one of its versions in a short URL.
fn below_model<'a>(path: &str, target: Target<'a>) -> Option<Route<'a>> {
    match path {
        "" => Some(Route::Model(target)),
        "openapi.json" => Some(Route::OpenApi(target)),
        "docs" | "docs/" => Some(Route::Docs(target)),
        path => mlflow(path, Some(target)),
    }
}

/// MLflow's paths, below a model or at the root.
fn mlflow<'a>(path: &str, target: Option<Target<'a>>) -> Option<Route<'a>> {
    match path {
        "ping" | "health" => Some(Route::Ping(target)),
        "version" => Some(Route::Version),
        "invocations" => Some(Route::Invocations(target)),
        _ => None,
    }
}

/// `/v1/models…`: TF Serving and KServe V1.
fn v1(rest: &str) -> Option<Route<'_>> {
    if matches!(rest, "" | "/") {
        return Some(Route::Models);
    }
    let rest = rest.strip_prefix('/')?;
    let (path, verb) = rest.split_once(':').map_or((rest, None), |(path, verb)| (path, Some(verb)));
    let (model, rest) = split_name(path)?;
    let (version, rest) = match rest.split_once('/') {
        Some(("versions" | "labels", version)) => {
            let (version, rest) = version.split_once('/').unwrap_or((version, ""));
            (Some(version), rest)
        }
        _ => (None, rest),
    };
    let target = Target { model, version };
    match (rest, verb) {
        ("", Some("predict")) => Some(Route::V1Predict(target)),
        ("", Some(verb @ ("classify" | "regress" | "explain"))) => Some(Route::V1Unsupported(target, verb)),
        ("" | "versions" | "labels", None) => Some(Route::V1Status(target)),
        ("metadata", None) => Some(Route::V1Metadata(target)),
        _ => None,
    }
}

/// `a/b/versions/6/verb` into its target and verb.
fn target(path: &str) -> Option<(Target<'_>, &str)> {
    let (model, rest) = split_name(path)?;
    let (version, verb) = match rest.strip_prefix("versions/") {
        Some(rest) => rest.split_once('/').map_or((Some(rest), ""), |(version, verb)| (Some(version), verb)),
        None => (None, rest),
    };
    Some((Target { model, version }, verb))
}

/// `a/b/rest` into `a/b` and `rest`.
fn split_name(path: &str) -> Option<(&str, &str)> {
    let slash = path.find('/')?;
    let name_end = path.get(slash + 1..)?.find('/').map_or(path.len(), |end| slash + 1 + end);
    let (name, rest) = path.split_at_checked(name_end)?;
    Some((name, rest.strip_prefix('/').unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_model_version_and_verb() {
        let target = |version| Target { model: "a/b", version };
        for (path, expected) in [
            ("/v2", Some(Route::ServerMetadata)),
            ("/v2/models/a/b", Some(Route::ModelMetadata(target(None)))),
            ("/v2/models/a/b/versions/6", Some(Route::ModelMetadata(target(Some("6"))))),
            ("/v2/models/a/b/ready", Some(Route::ModelReady(target(None)))),
            ("/v2/models/a/b/infer", Some(Route::Infer(target(None)))),
            ("/v2/models/a/b/versions/v6/infer", Some(Route::Infer(target(Some("v6"))))),
            ("/v2/models/a/b/versions/6/nope", None),
            ("/v2/models/stats", Some(Route::Statistics(None))),
            ("/v2/models/a/b/versions/6/stats", Some(Route::Statistics(Some(target(Some("6")))))),
            ("/v2/models/a/b/trace/setting", Some(Route::TraceSettings(Some(target(None))))),
            ("/v2/repository/models/a/b/unload", Some(Route::Unload("a/b"))),
            ("/v2/models/a", None),
            ("/v2x", None),
            ("/models/a/b", Some(Route::Model(target(None)))),
            ("/models/a/b/", Some(Route::Model(target(None)))),
            ("/models/a/b/v6/", Some(Route::Model(target(Some("v6"))))),
            ("/models/a/b/v6/x", None),
            ("/models/a/b/v6/invocations", Some(Route::Invocations(Some(target(Some("v6")))))),
            ("/models/a/b/ping", Some(Route::Ping(Some(target(None))))),
            ("/invocations", Some(Route::Invocations(None))),
            ("/v1/models", Some(Route::Models)),
            ("/v1/models/a/b:predict", Some(Route::V1Predict(target(None)))),
            ("/v1/models/a/b/versions/6:predict", Some(Route::V1Predict(target(Some("6"))))),
            ("/v1/models/a/b/labels/stable:predict", Some(Route::V1Predict(target(Some("stable"))))),
            ("/v1/models/a/b:explain", Some(Route::V1Unsupported(target(None), "explain"))),
            ("/v1/models/a/b", Some(Route::V1Status(target(None)))),
            ("/v1/models/a/b/versions/6/metadata", Some(Route::V1Metadata(target(Some("6"))))),
            ("/v1/models/a/b:nope", None),
            ("/", Some(Route::Root)),
            ("//", None),
        ] {
            assert_eq!(Route::parse(path), expected, "{path}");
        }
    }
}
