//! Small file systems of a test's own, to be filled to the brim and to lose power.
//!
//! Mounting needs root and a kernel with loop devices; where it is refused, the test is skipped loudly. A volume is
//! unmounted when it is dropped, also by a panic; what a killed test process left is unmounted by the next one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::tools;
use super::{Relay, eventually};

/// Folders with mounts are named by this and the process that made them.
const PREFIX: &str = "flagtap-volume-";

/// A mounted file system.
pub(crate) struct Volume {
    point: PathBuf,
    folder: TempDir,
}

impl Volume {
    /// Returns an ext4 of this size on a loop device; `None` after announcing that `test` is skipped.
    ///
    /// Nothing reaches the device unasked for a while: the journal is committed once a minute (5 s is usual), so only
    /// what was synced is there after a power cut.
    pub(crate) fn ext4(test: &str, megabytes: u64) -> Option<Self> {
        let volume = Self::unmounted();
        File::create(volume.image()).unwrap().set_len(megabytes << 20).unwrap();
        // Without the lazy parts the kernel has nothing of its own to write later.
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        let made = run("mkfs.ext4", ["-q", "-F", "-E", options], &[&volume.image()]);
        made.and_then(|()| volume.mount())
            .map_err(|why| tools::skip(test, &format!("no loop mounts here ({why})")))
            .ok()?;
        Some(volume)
    }

    /// Returns a tmpfs of this size with this many inodes; `None` after announcing that `test` is skipped.
    pub(crate) fn tmpfs(test: &str, megabytes: u64, inodes: u64) -> Option<Self> {
        let volume = Self::unmounted();
        let options = format!("size={megabytes}m,nr_inodes={inodes}");
        run("mount", ["-t", "tmpfs", "-o", &options, "tmpfs"], &[&volume.point])
            .map_err(|why| tools::skip(test, &format!("no tmpfs mounts here ({why})")))
            .ok()?;
        Some(volume)
    }

    /// Returns where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// Returns the bytes that are free.
    pub(crate) fn free_bytes(&self) -> u64 {
        let volume = rustix::fs::statvfs(&self.point).unwrap();
        volume.f_bavail * volume.f_frsize
    }

    /// Takes the power away from the relay and its volume at one moment, and mounts what the device then holds.
    ///
    /// The relay is stopped wherever it is, and the device copied once it is still: dirty pages, journal transactions
    /// and names that nobody synced are not in the copy. The mount replays the journal as after any power cut.
    pub(crate) fn cut_power(&self, relay: Relay) {
        relay.freeze();
        let copy = self.folder.path().join("copy");
        eventually("the device to be still", || {
            let before = self.device_activity();
            run("cp", ["--sparse=always"], &[&self.image(), &copy]).unwrap();
            (before == self.device_activity()).then_some(())
        });
        relay.kill();
        self.unmount().unwrap();
        fs::rename(copy, self.image()).unwrap();
        self.mount().unwrap();
    }

    fn unmounted() -> Self {
        unmount_leftovers();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let point = folder.path().join("mounted");
        fs::create_dir(&point).unwrap();
        Self { point, folder }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", ["-o", "loop,commit=60"], &[&self.image(), &self.point])
    }

    fn unmount(&self) -> Result<(), String> {
        run("umount", [""; 0], &[&self.point])
    }

    /// Returns the counters of requests that the loop device has begun and has under way.
    fn device_activity(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = self.point.to_str().unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(point));
        let device = line.and_then(|line| line.strip_prefix("/dev/")?.split(' ').next());
        fs::read_to_string(format!("/sys/block/{}/stat", device.expect("a loop device"))).unwrap()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A process that was just killed may hold a file for a moment more; detached, the mount goes with it.
        if self.unmount().is_err() {
            let _ = run("umount", ["--lazy"], &[&self.point]);
        }
    }
}

/// Unmounts what test processes left that are no more.
fn unmount_leftovers() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let process = point.split(PREFIX).nth(1).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = run("umount", ["--lazy"], &[Path::new(point)]);
        }
    }
}

fn run<const N: usize>(program: &str, arguments: [&str; N], paths: &[&Path]) -> Result<(), String> {
    let paths = paths.iter().map(|path| path.as_os_str());
    let arguments = arguments.iter().map(OsStr::new).chain(paths);
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
