//! Devices by name: `cpu`, `cpu:1`, `cuda:0`.

use std::{fmt, str::FromStr};

/// A device of the pool, written `cpu:0` or `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceId {
    /// The n-th CPU worker.
    Cpu(u32),
    /// The n-th CUDA GPU.
    Cuda(u32),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(number) => write!(f, "cpu:{number}"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A device name that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceParseError(String);

impl FromStr for DeviceId {
    type Err = DeviceParseError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { number.parse::<u32>().ok() } else { None };
        match (kind, number) {
            ("cpu", Some(number)) => Ok(Self::Cpu(number)),
            ("cuda", Some(number)) => Ok(Self::Cuda(number)),
            ("cpu" | "cuda", None) => Err(DeviceParseError(format!(
                "device `{name}`: the part after the colon must be a number, as in `{kind}:0`"
            ))),
            _ => Err(DeviceParseError(format!("device `{name}` is not known; write `cpu`, `cpu:N` or `cuda:N`"))),
        }
    }
}

/// Reads a comma-separated list such as `cpu`, `cpu:0,cpu:1` or `cuda:0,cuda:1`.
///
/// # Errors
/// When the list is empty, a name is not known, or a device is named twice.
pub fn parse_devices(list: &str) -> Result<Vec<DeviceId>, DeviceParseError> {
    let mut devices = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let device: DeviceId = name.parse()?;
        if devices.contains(&device) {
            return Err(DeviceParseError(format!(
                "device `{device}` is named twice; one worker owns a device, so name each once (`cpu:0,cpu:1` are two \
                 CPU workers)"
            )));
        }
        devices.push(device);
    }
    if devices.is_empty() {
        return Err(DeviceParseError("no device is named; write for example `cpu` or `cuda:0,cuda:1`".into()));
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, expected: &str) {
        let shown = match parse_devices(list) {
            Ok(devices) => devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(expected), "`{list}` gave `{shown}`, expected `{expected}`");
    }

    #[test]
    fn lists_are_read_and_refused() {
        check("cpu", "cpu:0");
        check("cpu:0, cpu:1", "cpu:0,cpu:1");
        check("cuda:0,cuda:11", "cuda:0,cuda:11");
        check("cpu,cpu:0", "named twice");
        check("gpu:0", "not known");
        check("cuda:", "must be a number");
        check("cpu:+1", "must be a number");
        check("cpu:99999999999", "must be a number");
        check("CPU", "not known");
        check(" , ", "no device");
    }
}
