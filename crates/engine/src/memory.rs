//! Memory in use, as the system and the allocator see it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aquatint_ops::buffer;
use serde::Serialize;

/// Memory of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    /// Resident now: allocations and the touched pages of mapped files.
    pub resident: u64,
    /// Highest resident so far.
    pub peak_resident: u64,
    /// Live allocations, those in the pool of buffers included, when the program counts them (see
    /// [`set_live_probe`]).
    pub live: Option<u64>,
}

static LIVE: OnceLock<fn() -> u64> = OnceLock::new();
static PEAK: AtomicU64 = AtomicU64::new(0);

/// Tells how to count live allocations. A program with a counting global allocator calls it once;
/// later calls are ignored.
pub fn set_live_probe(probe: fn() -> u64) {
    // A second probe would count the same allocator.
    let _ = LIVE.set(probe);
}

/// Memory of this process now. Figures that the system does not give are 0.
pub fn now() -> Memory {
    let resident = memory_stats::memory_stats().map_or(0, |m| m.physical_mem as u64);
    let peak = PEAK.fetch_max(resident, Ordering::Relaxed).max(resident);
    Memory {
        resident,
        peak_resident: high_water().unwrap_or(0).max(peak),
        live: LIVE.get().map(|probe| probe() + buffer::stats().in_use),
    }
}

/// The kernel's own record of the peak, which no sampling can miss.
fn high_water() -> Option<u64> {
    kibibytes(
        &std::fs::read_to_string("/proc/self/status").ok()?,
        "VmHWM:",
    )
}

/// Memory that a new process could take without swapping, when the system tells.
pub fn available() -> Option<u64> {
    system("MemAvailable:")
}

/// Memory of the machine, when the system tells.
pub fn total() -> Option<u64> {
    system("MemTotal:")
}

fn system(key: &str) -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, key)
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_peak_is_never_below_the_present() {
        let m = super::now();
        assert!(m.resident > 0);
        assert!(m.peak_resident >= m.resident / 2);
    }
}
