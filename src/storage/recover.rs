//! From what the disk has to the history that the core begins with.

use std::io::BufReader;

use super::StorageError;
use crate::disk::Recovered;
use crate::metadata::{History, read_snapshot};
use crate::types::Version;

/// Folds the snapshot and the changes after it. It ends where the store says that it does, or not at all.
pub fn recover(recovered: Recovered) -> Result<History, StorageError> {
    let mut history = match recovered.snapshot {
        Some(snapshot) => {
            let (image, position) = read_snapshot(&mut BufReader::new(snapshot))?;
            History::from_image(image, position)
        }
        None => History::new(),
    };
    for change in recovered.entries {
        let change = change?;
        for (version, payload) in &change.messages {
            history.skip_to(Version(version.0.saturating_sub(1)));
            history.offer(*version, payload)?;
        }
        history.skip_to(change.position.version);
    }
    if history.position() == recovered.position {
        Ok(history)
    } else {
        Err(StorageError::Inconsistent { found: history.position(), stored: recovered.position })
    }
}
