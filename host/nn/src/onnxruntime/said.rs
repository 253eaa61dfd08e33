//! What ONNX Runtime's texts mean, where nothing else tells: a session that cannot be made for want of memory or of a device has the same
//! code (`ORT_FAIL`, or `ORT_RUNTIME_EXCEPTION`) as one for a file that is wrong. Only here is a text looked into.

/// What a failure was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// A device that has no memory left, or an allocation that no machine could serve.
    NoMemory,
    /// A device that cannot be used. A plugin looks at its device only when a session is made.
    NoDevice,
    /// The graph, or its values.
    Other,
}

/// Where each begins is given: they come from `core/framework/bfc_arena.cc`, the C++ library, the WebGPU plugin (which says why in the log
/// alone), and `core/session/provider_policy_context.cc`.
const SIGNS: [(&str, Said); 7] = [
    ("out of memory", Said::NoMemory),
    ("Available memory of", Said::NoMemory),
    ("Failed to allocate memory", Said::NoMemory),
    ("bad allocation", Said::NoMemory),
    ("bad_alloc", Said::NoMemory),
    ("[Invalid Buffer", Said::NoMemory),
    ("Error creating execution provider", Said::NoDevice),
];

pub(super) fn of(text: &str) -> Said {
    SIGNS.iter().find(|(sign, _)| text.contains(sign)).map_or(Said::Other, |(_, said)| *said)
}
