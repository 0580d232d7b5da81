//! How much memory a process has: `VmRSS` of `/proc/PID/status` (proc(5)). It is what `--max-memory` and `status` mean.

use std::fs;

/// Resident memory of a process in bytes; `None` where there is no such process.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    read(&String::from_utf8_lossy(&status))
}

fn read(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(
            read("Name:\ta\nVmRSS:\t    1234 kB\nX:\t1"),
            Some(1_263_616)
        );
        for status in [
            "",
            "VmRSS:",
            "VmRSS: x kB",
            "VmRSS: 18446744073709551615 kB",
        ] {
            assert_eq!(read(status), None);
        }
        assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident(u32::MAX), None);
    }
}
