//! One binary for every target of `modelhost_protocol::fuzz`; the environment names which.

#![no_main]

use std::sync::LazyLock;

use modelhost_protocol::fuzz::TARGETS;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("MODELHOST_FUZZ_TARGET").expect("MODELHOST_FUZZ_TARGET names a target");
    TARGETS.iter().find(|(target, _)| *target == name).expect("a known target").1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
