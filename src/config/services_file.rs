//! The file of services.json: read once at the start, and again whenever its content changes.
//!
//! Looked at by content once a second: an editor that replaces the file and a mount that swaps it are seen alike. A faulty or
//! missing file changes nothing; its faults are said once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::services::{Fault, Services};

const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ServicesFileError {
    #[error("cannot read {path}: {source}; give the file's path with --services")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is faulty:\n{}", .faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n"))]
    Faulty { path: PathBuf, faults: Vec<Fault> },
}

/// Reads the file.
pub fn load(path: &Path) -> Result<Services, ServicesFileError> {
    let read = |source| ServicesFileError::Read { path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    Services::parse(&text).map_err(|faults| ServicesFileError::Faulty { path: path.into(), faults })
}

/// Watches the file from now on. The task ends when nobody listens any more.
pub fn watch(path: PathBuf, first: Services) -> watch::Receiver<Arc<Services>> {
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        let mut last = tokio::fs::read_to_string(&path).await.map_err(|error| error.to_string());
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                _ = ticks.tick() => {}
            }
            let now = tokio::fs::read_to_string(&path).await.map_err(|error| error.to_string());
            if now == last {
                continue;
            }
            match now.as_deref().map(Services::parse) {
                Ok(Ok(services)) => {
                    tracing::info!(path = %path.display(), "services.json has changed and is in force");
                    sender.send_replace(Arc::new(services));
                }
                Ok(Err(faults)) => {
                    for fault in faults {
                        tracing::warn!(path = %path.display(), "services.json is faulty, the former one stays in force: {fault}");
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), "services.json cannot be read, the former one stays in force: {error}");
                }
            }
            last = now;
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"metadataServices": [{"id": 0}], "storageServices": []}"#;
    const TWO: &str = r#"{"metadataServices": [{"id": 0}, {"id": 1}], "storageServices": []}"#;

    #[tokio::test]
    async fn a_replaced_file_is_picked_up_and_a_faulty_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services.json");
        std::fs::write(&path, ONE).unwrap();
        let mut watched = watch(path.clone(), load(&path).unwrap());
        // Replaced as an editor does: a new file is renamed over it.
        for (text, counts) in [("{", false), (TWO, true)] {
            let fresh = folder.path().join("fresh");
            std::fs::write(&fresh, text).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
            if counts {
                watched.changed().await.unwrap();
            }
        }
        assert_eq!(watched.borrow().controller_ids().count(), 2);
    }

    #[test]
    fn a_missing_file_is_told_by_its_path() {
        let error = load(Path::new("/nowhere/services.json")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/services.json") && error.contains("--services"), "{error}");
    }
}
