//! What the process and its disk are like, as the system says.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::wire::Health;

/// Measures; processor time is since the measurement before.
pub(super) struct Sampler {
    directory: PathBuf,
    last: Option<(Instant, u64)>,
}

impl Sampler {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), last: None }
    }

    /// May block as long as the disk does.
    pub(super) fn sample(&mut self) -> Health {
        let mut health = Health::default();
        match rustix::fs::statvfs(&self.directory) {
            Ok(disk) => {
                health.disk_total_bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
                health.disk_free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
            }
            Err(error) => health.directory_errors.push(format!("{}: {error}", self.directory.display())),
        }
        if let Some((ticks, pages)) = process() {
            health.memory_bytes = pages.saturating_mul(rustix::param::page_size() as u64);
            let now = Instant::now();
            if let Some((before, earlier)) = self.last.replace((now, ticks)) {
                let wall = now.duration_since(before).as_millis().max(1) as u64;
                let used =
                    ticks.saturating_sub(earlier).saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1);
                health.cpu_millicores = u32::try_from(used.saturating_mul(1000) / wall).unwrap_or(u32::MAX);
            }
        }
        health
    }
}

/// Processor time in clock ticks, and resident pages.
fn process() -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold anything, and ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)?.saturating_add(field(15)?), field(24)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_real() {
        let mut sampler = Sampler::new(Path::new("/"));
        sampler.sample();
        let health = sampler.sample();
        assert!(health.disk_total_bytes > health.disk_free_bytes && health.memory_bytes > 1 << 20, "{health:?}");
        assert!(Sampler::new(Path::new("/no/such/place")).sample().directory_errors.len() == 1);
    }
}
