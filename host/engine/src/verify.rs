//! Checks what a component imports, before any of its code runs.

use modelhost_core::error::Error;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Interfaces that grant nothing, because they are linked to an empty world. A guest built for `wasm32-wasip2`
/// imports most of them, even unused.
const HARMLESS: [&str; 9] = [
    "modelhost:inference/artifacts",
    "modelhost:inference/logging",
    "modelhost:inference/types",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/network",
];

/// Our interface for graphs. The capability for the standard's interface grants it too.
const OWN_GRAPHS: &str = "modelhost:inference/graphs";

/// The standard's interface for graphs.
const GRAPHS: &str = "wasi:nn/graph";

/// The interface that a runtime must export.
const MODEL: &str = "modelhost:inference/model@0.1.0";

/// Checks that a component imports only what was granted, and that it exports the model interface. Errors: invalid
/// argument, naming the import or the missing export.
pub(crate) fn verify(engine: &Engine, component: &Component, granted: &[String]) -> Result<(), Error> {
    let ty = component.component_type();
    for (import, _) in ty.imports(engine) {
        let import = if import.starts_with(OWN_GRAPHS) { GRAPHS } else { import };
        let harmless = HARMLESS.iter().any(|known| import.starts_with(known));
        if !harmless && !granted.iter().any(|grant| covers(grant, import)) {
            return Err(Error::invalid(format!(
                "verify: the component imports {import:?}, which nobody granted; a manifest asks for it with \
                 capabilities = [{import:?}]"
            )));
        }
    }
    if ty.exports(engine).any(|(export, _)| export == MODEL) {
        return Ok(());
    }
    let exports: Vec<_> = ty.exports(engine).map(|(export, _)| export.to_owned()).collect();
    Err(Error::invalid(format!("verify: the component does not export {MODEL:?}; it exports {exports:?}")))
}

/// Whether `grant` (`wasi:nn` or `wasi:nn/graph@0.2.0`) covers this import.
fn covers(grant: &str, import: &str) -> bool {
    import.strip_prefix(grant).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(component: &str, granted: &[&str], expected: &str) {
        let engine = Engine::default();
        let component = Component::from_binary(&engine, &wat::parse_str(component).unwrap()).unwrap();
        let granted: Vec<_> = granted.iter().map(|grant| (*grant).to_owned()).collect();
        let error = verify(&engine, &component, &granted).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }

    #[test]
    fn names_the_import_that_nobody_granted() {
        let secrets = r#"(component (import "acme:vault/secrets@1.0.0" (instance)))"#;
        check(secrets, &[], "imports \"acme:vault/secrets@1.0.0\", which nobody granted");
        check(secrets, &["wasi:nn"], "which nobody granted");
        check(secrets, &["acme:vault"], "does not export \"modelhost:inference/model@0.1.0\"");
        let tcp = r#"(component (import "wasi:sockets/tcp@0.2.0" (instance)))"#;
        check(tcp, &[], "imports \"wasi:sockets/tcp@0.2.0\"");
        let harmless = r#"(component (import "wasi:clocks/monotonic-clock@0.2.0" (instance)))"#;
        check(harmless, &[], "does not export");
    }

    #[test]
    fn a_grant_covers_its_package_and_interfaces_only() {
        for (grant, import, expected) in [
            ("wasi:nn", "wasi:nn/graph@0.2.0", true),
            ("wasi:nn/graph", "wasi:nn/graph@0.2.0", true),
            ("wasi:nn/graph@0.2.0", "wasi:nn/graph@0.2.0", true),
            ("wasi:n", "wasi:nn/graph@0.2.0", false),
            ("wasi:nn/gra", "wasi:nn/graph@0.2.0", false),
        ] {
            assert_eq!(covers(grant, import), expected, "{grant} {import}");
        }
    }
}
