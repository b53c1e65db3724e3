//! From what the disk has to the history that the core begins with.

use std::io::BufReader;

use super::ControllerError;
use crate::disk::Recovered;
use crate::metadata::{Change, History, Offered, read_snapshot};
use crate::types::Version;

/// Folds the snapshot and the changes after it, and gives the last of these too. It ends where the store says that it
/// does, or not at all.
pub(crate) fn recover(recovered: Recovered) -> Result<(History, Option<Change>), ControllerError> {
    let mut history = match recovered.snapshot {
        Some(snapshot) => {
            let (image, position) = read_snapshot(&mut BufReader::new(snapshot))?;
            History::from_image(image, position)
        }
        None => History::new(),
    };
    let mut last = None;
    for change in recovered.entries {
        let change = change?;
        for (version, payload) in &change.messages {
            history.skip_to(Version(version.0.saturating_sub(1)));
            match history.offer(*version, payload)? {
                Offered::Change(change) => last = Some(*change),
                Offered::Known | Offered::Void(_) | Offered::Part => {}
            }
        }
        history.skip_to(change.position.version);
    }
    if history.position() == recovered.position {
        Ok((history, last))
    } else {
        Err(ControllerError::Inconsistent { found: history.position(), stored: recovered.position })
    }
}
