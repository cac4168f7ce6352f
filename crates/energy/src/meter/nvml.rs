//! GPUs of NVIDIA, by the management library (NVML) of their driver, loaded at run time; without a driver there are none.
//!
//! Source: NVML API reference. The energy counter (Volta and later) counts millijoules since the driver was loaded and is renewed
//! every 20 to 100 ms; older and virtual boards have none, and their power is sampled. On A100 and H100 power is itself sampled
//! over a quarter of the time only (arXiv:2312.02741), one more reason to prefer the counter.

use std::{ffi::OsStr, sync::Arc};

use super::counter::{Counter, Integrator, Step};

/// The counter lags by up to this much, in seconds.
pub const GRANULARITY_S: f64 = 0.1;

/// More power than any one board can take, in watts.
const MAX_W: f64 = 5000.0;

/// Power between samples further apart than this is not known, in seconds.
const MAX_GAP_S: f64 = 5.0;

/// A graphics board. The trait is the seam at which tests put boards of their own.
pub trait Board: Send + Sync {
    /// For people.
    fn name(&self) -> String;

    /// Millijoules since the driver was loaded.
    ///
    /// # Errors
    /// If the board has no such counter, or has gone.
    fn energy_mj(&self) -> Result<u64, String>;

    /// Power in milliwatts, as the board averages it.
    ///
    /// # Errors
    /// If the board does not tell, or has gone.
    fn power_mw(&self) -> Result<u32, String>;
}

/// The boards of this machine; none without a driver. One that cannot be opened is a board all the same: its energy is unknown, not nothing.
///
/// `library` names another file than the driver's.
///
/// # Errors
/// Why the library cannot be used, although it may be there. That it is not there at all is no error.
pub fn boards(library: Option<&OsStr>) -> Result<Vec<Arc<dyn Board>>, String> {
    use nvml_wrapper::error::NvmlError::{DriverNotLoaded, LibloadingError, LibraryNotFound};
    let mut builder = nvml_wrapper::Nvml::builder();
    if let Some(library) = library {
        builder.lib_path(library);
    }
    let nvml = match builder.init() {
        Ok(nvml) => Arc::new(nvml),
        Err(LibloadingError(_) | LibraryNotFound | DriverNotLoaded) => return Ok(vec![]),
        Err(error) => return Err(format!("NVML does not start: {error}")),
    };
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => return Ok(vec![Arc::new(Closed(format!("NVML does not count its boards: {error}")))]),
    };
    let open = |index| -> Result<NvmlBoard, String> {
        let device = nvml.device_by_index(index).map_err(|e| format!("GPU {index} cannot be opened: {e}"))?;
        let name = device.name().unwrap_or_else(|_| "GPU".into());
        let uuid = device.uuid().map_err(|e| format!("GPU {index} has no UUID: {e}"))?;
        Ok(NvmlBoard { nvml: nvml.clone(), name, uuid })
    };
    let board = |index| match open(index) {
        Ok(board) => Arc::new(board) as Arc<dyn Board>,
        Err(why) => Arc::new(Closed(why)),
    };
    Ok((0..count).map(board).collect())
}

/// A board that is there and cannot be opened, and why.
struct Closed(String);

impl Board for Closed {
    fn name(&self) -> String {
        "a board that cannot be opened".into()
    }

    fn energy_mj(&self) -> Result<u64, String> {
        Err(self.0.clone())
    }

    fn power_mw(&self) -> Result<u32, String> {
        Err(self.0.clone())
    }
}

/// Found again by its UUID at each look, because the index of a board changes when another one is removed.
struct NvmlBoard {
    nvml: Arc<nvml_wrapper::Nvml>,
    name: String,
    uuid: String,
}

impl Board for NvmlBoard {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn energy_mj(&self) -> Result<u64, String> {
        let device = self.nvml.device_by_uuid(self.uuid.as_str()).map_err(|e| format!("{}: {e}", self.name))?;
        device.total_energy_consumption().map_err(|e| format!("{}: no energy counter: {e}", self.name))
    }

    fn power_mw(&self) -> Result<u32, String> {
        let device = self.nvml.device_by_uuid(self.uuid.as_str()).map_err(|e| format!("{}: {e}", self.name))?;
        device.power_usage().map_err(|e| format!("{}: no power reading: {e}", self.name))
    }
}

/// A sensor of the board's energy counter.
pub fn counter(board: Arc<dyn Board>) -> impl FnMut(f64) -> Step + Send + 'static {
    let mut counter = Counter::new(1e-3, None, MAX_W, GRANULARITY_S);
    move |now_s| counter.read(now_s, board.energy_mj())
}

/// A sensor that integrates the board's power.
pub fn power(board: Arc<dyn Board>) -> impl FnMut(f64) -> Step + Send + 'static {
    let mut power = Integrator::new(MAX_GAP_S);
    move |now_s| power.read(now_s, board.power_mw().map(|mw| f64::from(mw) * 1e-3))
}
