//! The directory of a `dmq dev`: who owns it, what it holds, and dev.json, which tells others what runs.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::process::Role;

/// The directory, owned for as long as this lives.
pub struct Folder {
    path: PathBuf,
    /// Ends with the process, however it ends.
    _lock: File,
}

/// dev.json.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DevJson {
    pub nats_url: String,
    /// Those that run.
    pub processes: Vec<Listed>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    pub role: Role,
    pub id: u32,
    pub pid: u32,
}

impl Folder {
    /// Takes the directory, which exists, unless another `dmq dev` has it.
    pub fn take(path: PathBuf) -> anyhow::Result<Self> {
        let lock_path = path.join("dev.lock");
        let open = File::options().create(true).append(true).open(&lock_path);
        let lock = open.with_context(|| format!("open {}", lock_path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            anyhow::bail!(
                "another `dmq dev` runs on {}; stop it, or choose another directory with --data",
                path.display()
            );
        }
        // What a `dmq dev` that was killed left behind. Its children died with it.
        for stale in [path.join("dev.json"), path.join(super::control::SOCKET)] {
            match fs::remove_file(&stale) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", stale.display()));
                }
                _ => {}
            }
        }
        fs::create_dir_all(path.join("logs")).with_context(|| format!("create {}", path.join("logs").display()))?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self, role: Role, id: u32) -> PathBuf {
        self.path.join("logs").join(format!("{role}-{id}.log"))
    }

    /// Replaces dev.json, so that a reader sees the old one or the new one.
    pub fn write_dev_json(&self, content: &DevJson) -> anyhow::Result<()> {
        self.replace("dev.json", &serde_json::to_vec_pretty(content)?)
    }

    pub fn remove_dev_json(&self) {
        // Where it cannot be removed, the next `dmq dev` sees that nobody holds the lock.
        let _ = fs::remove_file(self.path.join("dev.json"));
    }

    pub fn replace(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let (fresh, path) = (self.path.join(format!("{name}.new")), self.path.join(name));
        let write = || fs::write(&fresh, content).and_then(|()| fs::rename(&fresh, &path));
        write().with_context(|| format!("write {}", path.display()))
    }

    /// The system account's password, made once per directory and readable by its owner alone.
    pub fn system_password(&self) -> anyhow::Result<String> {
        let path = self.path.join("system-password");
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().into()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
            _ => {}
        }
        // A letter first: nats-server reads the variable as a value of its configuration, where a digit begins a number.
        let password = format!("p{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            writeln!(file, "{password}")
        };
        write().with_context(|| format!("write {}", path.display()))?;
        Ok(password)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::take(dir.path().into()).unwrap();
        let error = Folder::take(dir.path().into()).err().unwrap().to_string();
        assert!(error.starts_with("another `dmq dev` runs on "), "{error}");
        drop(first);
        assert!(Folder::take(dir.path().into()).is_ok());
    }

    #[test]
    fn a_stale_dev_json_is_gone_once_the_directory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("dev.json"), "{}").unwrap();
        let _folder = Folder::take(dir.path().into()).unwrap();
        assert!(!dir.path().join("dev.json").exists());
    }

    #[test]
    fn the_password_is_kept_and_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path().into()).unwrap();
        let password = folder.system_password().unwrap();
        assert_eq!(folder.system_password().unwrap(), password);
        let mode = fs::metadata(dir.path().join("system-password")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn dev_json_has_the_promised_shape() {
        let listed = Listed { role: Role::Storage, id: 2, pid: 77 };
        let json = DevJson { nats_url: "nats://127.0.0.1:4222".into(), processes: vec![listed] };
        let wanted = r#"{"natsUrl":"nats://127.0.0.1:4222","processes":[{"role":"storage","id":2,"pid":77}]}"#;
        assert_eq!(serde_json::to_string(&json).unwrap(), wanted);
    }
}
