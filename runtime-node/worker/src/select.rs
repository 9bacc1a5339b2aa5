//! Which devices a node serves.

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Cpu,
    Cuda,
    /// CUDA when there is any, else the CPU.
    Auto,
}

/// What the node serves, in the order of its device numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selected {
    Cpu {
        /// Why not CUDA, when that was considered.
        reason: Option<String>,
    },
    Cuda {
        count: u8,
    },
}

/// CUDA was asked for and is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no CUDA device can be used: {reason}; start with --device cpu or --device auto")]
pub struct NoCuda {
    reason: String,
}

/// Decides; `cuda_devices` is asked only when its answer matters, because it loads libraries.
pub fn select(
    wanted: Wanted,
    cuda_devices: impl FnOnce() -> Result<u8, String>,
) -> Result<Selected, NoCuda> {
    if wanted == Wanted::Cpu {
        return Ok(Selected::Cpu { reason: None });
    }
    let found = match cuda_devices() {
        Ok(0) => Err("the driver reports no device".to_owned()),
        other => other,
    };
    match (found, wanted) {
        (Ok(count), _) => Ok(Selected::Cuda { count }),
        (Err(reason), Wanted::Auto) => Ok(Selected::Cpu { reason: Some(reason) }),
        (Err(reason), _) => Err(NoCuda { reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_is_taken_when_wanted_and_there() {
        let none = || Err("no driver".to_owned());
        assert_eq!(select(Wanted::Cpu, || panic!("not asked")), Ok(Selected::Cpu { reason: None }));
        assert_eq!(select(Wanted::Auto, || Ok(2)), Ok(Selected::Cuda { count: 2 }));
        assert_eq!(select(Wanted::Cuda, || Ok(1)), Ok(Selected::Cuda { count: 1 }));
        let reason = Some("no driver".to_owned());
        assert_eq!(select(Wanted::Auto, none), Ok(Selected::Cpu { reason }));
        let error = select(Wanted::Cuda, none).unwrap_err().to_string();
        assert!(error.contains("no driver") && error.contains("--device cpu"), "{error}");
        assert!(select(Wanted::Cuda, || Ok(0)).is_err());
    }
}
