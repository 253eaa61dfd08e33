//! What the operating system grants this process: memory mappings and open files.

use modelhost_core::error::Error;

use crate::config::Config;

/// Mappings that an instance slot takes: memory with its guards and image, stack, tables. Measured: 4.2.
const MAPPINGS_AN_INSTANCE: u64 = 5;

/// Mappings that a version in memory takes: the parts of its file, which have different protections. Measured: 4.
const MAPPINGS_A_VERSION: u64 = 5;

/// Mappings of everything else: the program, its libraries, threads, the heap.
const SPARE_MAPPINGS: u64 = 4096;

/// Open files of everything but connections and versions.
const SPARE_FILES: u64 = 512;

/// What Linux grants when nobody changed it.
const DEFAULT_MAPPINGS: u64 = 65_530;

/// How many versions may be in memory at once: what the configuration says, or what the system allows. Takes as many
/// open files as it can. Errors: invalid argument, when the instances alone, or what was asked for, need more than the
/// system allows; it says what to raise.
pub(crate) fn loaded_versions(config: &Config) -> Result<u32, Error> {
    let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let mappings = mappings.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_MAPPINGS);
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let most = by_mappings(mappings, config)?.min(by_files(files, config));
    match config.loaded_versions {
        None => Ok(most),
        Some(asked) if asked <= most => Ok(asked),
        Some(asked) => Err(Error::invalid(format!(
            "loaded_versions = {asked}, but this system has room for {most}: vm.max_map_count is {mappings} (raise it with \
             sysctl -w vm.max_map_count=N), and {files} files can be open (ulimit -n)"
        ))),
    }
}

fn by_mappings(mappings: u64, config: &Config) -> Result<u32, Error> {
    let needed = u64::from(config.instances) * MAPPINGS_AN_INSTANCE + SPARE_MAPPINGS;
    let left = mappings.saturating_sub(needed) / MAPPINGS_A_VERSION;
    if left == 0 {
        let needed = needed + MAPPINGS_A_VERSION;
        return Err(Error::invalid(format!(
            "instances = {} need about {needed} memory mappings, and vm.max_map_count is {mappings}: raise it with \
             sysctl -w vm.max_map_count={needed}, or have fewer instances",
            config.instances
        )));
    }
    Ok(u32::try_from(left).unwrap_or(u32::MAX))
}

/// Each version in memory holds its file open. Connections get at most half of all files.
fn by_files(files: u64, config: &Config) -> u32 {
    let connections = (config.max_connections as u64).min(files / 2);
    if connections < config.max_connections as u64 {
        let wanted = config.max_connections;
        tracing::warn!(
            files,
            max_connections = wanted,
            "the system grants fewer open files than max_connections needs"
        );
    }
    u32::try_from(files.saturating_sub(connections + SPARE_FILES).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(instances: u32) -> Config {
        Config { instances, ..Config::default() }
    }

    #[test]
    fn versions_get_the_mappings_that_instances_leave() {
        assert_eq!(by_mappings(65_530, &config(1000)), Ok(11_286));
        let error = by_mappings(65_530, &config(15_000)).unwrap_err();
        assert!(error.message.contains("sysctl -w vm.max_map_count=79101"), "{error}");
    }

    #[test]
    fn versions_get_the_files_that_connections_leave() {
        assert_eq!(by_files(1 << 20, &config(1000)), (1 << 20) - 16_384 - 512);
        assert_eq!(by_files(4096, &config(1000)), 2048 - 512);
        assert_eq!(by_files(10, &config(1000)), 1);
    }
}
