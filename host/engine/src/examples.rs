//! Runs the manifest's examples before a version serves. Their answers must match.

use std::time::{Duration, Instant};

use modelhost_core::compare;
use modelhost_core::error::Error;
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::version::Example;

use crate::instance::Loaded;

/// How long an example waits for anything beside its own run, e.g. for memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs every example, each within `limit`. Errors: the first difference, naming example, output and element.
pub(crate) async fn run(model: &Loaded, examples: &[Example], limit: Duration) -> Result<(), Error> {
    for (at, example) in examples.iter().enumerate() {
        let in_example = |error: Error| error.within(format_args!("warm: example {}", at + 1));
        let mut request: InferRequest = example.request.clone();
        request.conform(&model.report.signature).map_err(in_example)?;
        let deadline = Deadline::after(Instant::now(), limit.max(PATIENCE));
        let outputs = model.answer(&request, limit, deadline).await.map_err(in_example)?;
        for expected in &example.outputs {
            let name = expected.name();
            let came = outputs.iter().find(|output| output.name() == name);
            let came = came.ok_or_else(|| format!("output {name:?} did not come"));
            came.and_then(|came| compare::check(came, expected, |_| example.tolerance))
                .map_err(|why| in_example(Error::fault(why)))?;
        }
    }
    Ok(())
}
