//! How much a manifest may hold. Only new versions are checked, so that a lower bound does not affect what is stored.

use modelhost_core::artifact::check_file_name;
use modelhost_core::error::Error;

use super::{Feature, Manifest};

/// Bytes of a `model.toml`. This bounds every text in it too.
const MAX_TEXT: usize = 1 << 20;

/// Entries of lists that are usually short.
const MAX_FILES: usize = 1024;
const MAX_CAPABILITIES: usize = 64;
const MAX_PARAMETERS: usize = 1024;
const MAX_TRAINING: usize = 1024;
const MAX_EXAMPLES: usize = 256;
const MAX_EXAMPLE_TENSORS: usize = 1024;

/// Columns of the input table, and values of a categorical column.
const MAX_COLUMNS: usize = 16_384;
const MAX_CATEGORIES: usize = 65_536;

/// Bytes of a text that is shown in a line, and of one that is shown as a paragraph.
const MAX_LINE: usize = 1024;
const MAX_PARAGRAPH: usize = 64 << 10;

/// Errors: invalid argument.
pub(super) fn check_text(text: &str) -> Result<(), Error> {
    at_most("bytes", text.len(), MAX_TEXT)
}

/// Errors: invalid argument, naming the key.
pub(super) fn check(manifest: &Manifest) -> Result<(), Error> {
    manifest.artifacts.iter().chain(&manifest.component).try_for_each(|name| check_file_name(name))?;
    let training = manifest.training.as_ref();
    let training = training.map_or(0, |training| training.parameters.len() + training.metrics.len());
    for (what, count, most) in [
        ("artifacts", manifest.artifacts.len(), MAX_FILES),
        ("capabilities", manifest.capabilities.len(), MAX_CAPABILITIES),
        ("parameters", manifest.parameters.len(), MAX_PARAMETERS),
        ("training parameters and metrics", training, MAX_TRAINING),
        ("features", manifest.features.len(), MAX_COLUMNS),
        ("examples", manifest.examples.len(), MAX_EXAMPLES),
        ("bytes of description", manifest.description.len(), MAX_PARAGRAPH),
        ("bytes of author", manifest.author.len(), MAX_LINE),
    ] {
        at_most(what, count, most)?;
    }
    for name in manifest.parameters.keys().chain(&manifest.capabilities) {
        at_most("bytes of a parameter's or capability's name", name.len(), MAX_LINE)?;
    }
    for example in &manifest.examples {
        at_most("tensors of an example", example.inputs.len() + example.outputs.len(), MAX_EXAMPLE_TENSORS)?;
    }
    manifest.features.iter().try_for_each(check_feature)
}

fn check_feature(feature: &Feature) -> Result<(), Error> {
    at_most("bytes of a feature's name", feature.name.len(), MAX_LINE)?;
    at_most("bytes of a feature's unit", feature.unit.as_ref().map_or(0, String::len), MAX_LINE)?;
    let categories = feature.categories.as_deref().unwrap_or_default();
    at_most("categories of a feature", categories.len(), MAX_CATEGORIES)?;
    let description = feature.description.as_ref().map_or(0, String::len);
    at_most("bytes of a feature's description", description, MAX_PARAGRAPH)?;
    categories.iter().try_for_each(|value| at_most("bytes of a category", value.len(), MAX_LINE))
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), Error> {
    if count <= most {
        return Ok(());
    }
    Err(Error::invalid(format!("model.toml: {count} {what}, at most {most} are allowed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_version_says_only_so_much_and_names_files_below_its_folder() {
        let many = |count: usize, entry: &str| {
            (0..count).map(|at| entry.replace('#', &at.to_string())).collect::<String>()
        };
        let long = "x".repeat(2000);
        for (keys, expected) in [
            (format!("description = '{}'", "x".repeat(MAX_TEXT)), "bytes, at most 1048576"),
            (format!("description = '{}'", "x".repeat(MAX_PARAGRAPH + 1)), "65537 bytes of description"),
            (format!("artifacts = [{}]", many(1025, "'a#',")), "1025 artifacts, at most 1024"),
            (format!("capabilities = [{}]", many(65, "'a#',")), "65 capabilities"),
            (format!("[parameters]\n{}", many(1025, "a# = 'x'\n")), "1025 parameters"),
            (format!("[parameters]\n{long} = 'x'"), "bytes of a parameter's"),
            (many(16_385, "[[features]]\nname = 'f#'\n"), "16385 features"),
            (format!("[[features]]\nname = '{long}'"), "2000 bytes of a feature's name"),
            (
                format!("[[features]]\nname = 'f'\ncategories = [{}]", many(65_537, "'c#',")),
                "65537 categories",
            ),
            (many(257, "[[examples]]\ninputs = []\noutputs = []\n"), "257 examples"),
            ("artifacts = ['../../.ssh/id_rsa']".to_owned(), "without \"..\""),
            ("artifacts = ['/etc/passwd']".to_owned(), "not absolute"),
            ("artifacts = [\"a\\nb\"]".to_owned(), "no control characters"),
        ] {
            let text = format!("runtime = 'a'\n{keys}");
            let error = Manifest::parse_new(&text).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
        let component = Manifest::parse_new("component = '../x.wasm'").unwrap_err();
        assert!(component.message.contains("\"../x.wasm\""), "{component}");
        assert!(Manifest::parse("component = '../x.wasm'").is_ok(), "what is stored stays readable");
    }
}
