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

/// What each is part of: they are the arena's, the C++ library's, the WebGPU plugin's (which says why in the log alone), and those of the
/// factory of plugins.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's beginnings with endings of ours; the integration tests make the library itself run out of memory.
    #[test]
    fn tells_memory_and_devices_from_graphs() {
        for (text, expected) in [
            (
                "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 4294967296",
                Said::NoMemory,
            ),
            (
                "BFCArena: Available memory of 1048576 is smaller than requested bytes of 4194304",
                Said::NoMemory,
            ),
            ("CUDA failure 2: out of memory ; GPU=0", Said::NoMemory),
            ("Exception during initialization: std::bad_alloc", Said::NoMemory),
            ("Exception during initialization: bad allocation", Said::NoMemory),
            ("Error creating execution provider: Failed to get a WebGPU adapter", Said::NoDevice),
            ("Fatal error: Frobnicate(-1) is not a registered function/op", Said::Other),
            ("Protobuf parsing failed.", Said::Other),
            ("", Said::Other),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }
}
