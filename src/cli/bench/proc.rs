//! What the kernel says of the machine and of a process. Linux only; elsewhere there are no such figures.

use std::time::Duration;

use anyhow::Context;

/// The processor time that a process has used, by all its threads.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = ticks(&stat).with_context(|| format!("read {path}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// utime and stime: the 14th and 15th field. The second one, the name, may hold anything in its brackets.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// A line of `/proc/PID/status`, in kB: `VmRSS` is what is resident, `VmHWM` the most that ever was.
fn status_kb(pid: u32, key: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    kb(&status, key).with_context(|| format!("{path} has no {key}"))
}

fn kb(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Resident memory in MB.
pub fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    Ok(status_kb(pid, "VmRSS")? as f64 / 1024.0)
}

/// The most that was ever resident, or since [`forget_peak`], in MB.
pub fn peak_mb(pid: u32) -> anyhow::Result<f64> {
    Ok(status_kb(pid, "VmHWM")? as f64 / 1024.0)
}

/// Lets the peak begin anew at what is resident now.
pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").with_context(|| format!("write {path}"))
}

/// In MB.
pub fn memory_mb() -> u64 {
    let all = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kb(&all, "MemTotal").unwrap_or(0) / 1024
}

pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 9 0 0 0 120 30 0 0 20 0 9 0 1 2 3";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("77 nothing"), None);
    }

    #[test]
    fn kilobytes_are_read_by_their_name() {
        let status = "Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!((kb(status, "VmRSS"), kb(status, "VmHWM"), kb(status, "Vm")), (Some(1024), Some(2048), None));
    }
}
