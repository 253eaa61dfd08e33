//! Classifies ONNX Runtime's messages where nothing else tells failures apart. A session that fails for lack of
//! memory or of a device has the same code (`ORT_FAIL` or `ORT_RUNTIME_EXCEPTION`) as one that fails for a bad file.
//! No other code looks into these texts.

/// The cause of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The device has no memory left, or no machine could serve the allocation.
    NoMemory,
    /// The device cannot be used. A plugin checks its device only when a session is made.
    NoDevice,
    /// The graph or its values.
    Other,
}

/// Parts of messages: of the arena, the C++ library, the WebGPU plugin (which gives the reason only in the log) and
/// the plugin factory.
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

    /// The library's messages with other endings. The integration tests make the library itself run out of memory.
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
