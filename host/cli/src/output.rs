//! Tables for people, JSON for programs.

use anyhow::Result;
use comfy_table::{Table, presets};
use jiff::Timestamp;
use modelhost_admin::wire;
use serde::Serialize;

use crate::args::Output;

/// Prints `value` as JSON, or as the text that `table` returns.
pub(crate) fn print<T: Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(value)?),
        Output::Table => println!("{}", table(value)),
    }
    Ok(())
}

/// A table without borders.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.add_rows(rows);
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// `v6 90%, v7 10%; challenged by v8; sticky by header:x-user`.
pub(crate) fn policy(policy: Option<&wire::Policy>) -> String {
    let Some(policy) = policy else { return "nothing promoted".to_owned() };
    let shares: Vec<_> =
        policy.shares.iter().map(|share| format!("v{} {}%", share.version, share.percent)).collect();
    let mut text = shares.join(", ");
    if !policy.challengers.is_empty() {
        let challengers: Vec<_> = policy.challengers.iter().map(|version| format!("v{version}")).collect();
        text.push_str(&format!("; challenged by {}", challengers.join(", ")));
    }
    if let Some(sticky) = &policy.sticky {
        text.push_str(&format!("; sticky by {sticky}"));
    }
    if policy.pinned {
        text.push_str("; pinned");
    }
    text
}

/// `2026-11-21 10:00:00` (UTC).
pub(crate) fn time(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms)
        .map_or_else(|_| at_ms.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// `1.5 MiB`, in a fitting unit.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&""))
}

/// `250 us`, `3.2 ms`, `1.50 s`.
pub(crate) fn micros(micros: f64) -> String {
    match micros {
        micros if micros < 1e3 => format!("{micros:.0} us"),
        micros if micros < 1e6 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{:.2} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit_the_number() {
        assert_eq!([bytes(0), bytes(1536), bytes(5 << 20)], ["0.0 KiB", "1.5 KiB", "5.0 MiB"]);
        assert_eq!([micros(7.0), micros(3200.0), micros(1.5e6)], ["7 us", "3.2 ms", "1.50 s"]);
    }
}
