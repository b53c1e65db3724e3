//! Bugs that can be planted in a log, each at the one line that keeps a rule, to show that the model catches them. Only test
//! builds have the lines, and only the thread that asks for a bug has it.

use std::cell::Cell;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bug {
    /// A cut leaves the epochs of what it took away.
    EpochsOutliveACut,
    /// A cut leaves what was known of the producers of what it took away.
    ProducersOutliveACut,
    /// Opening looks at no checksum behind the last index entry.
    TornTailTrusted,
    /// A sync counts for what was appended after it.
    SyncSaysMore,
    /// A sync does nothing.
    SyncSkipped,
    /// A segment is begun before the one before it is synced.
    RollsUnsynced,
    /// An index is written about what is not synced.
    IndexAhead,
    /// Compaction takes the last record of a key.
    CompactsTheNewest,
    /// Compaction goes beyond the high watermark.
    CompactsTheUncommitted,
    /// Opening reads a snapshot of the producers and not the batches behind it.
    ProducersForgotten,
    /// Retention takes the active segment, whatever its size and age.
    DeletesTheActive,
    /// Retention goes beyond the high watermark.
    DeletesTheUncommitted,
    /// A start that was moved is not held to when something is read.
    DeletedIsServed,
}

impl Bug {
    pub const ALL: [Self; 13] = [
        Self::EpochsOutliveACut,
        Self::ProducersOutliveACut,
        Self::TornTailTrusted,
        Self::SyncSaysMore,
        Self::SyncSkipped,
        Self::RollsUnsynced,
        Self::IndexAhead,
        Self::CompactsTheNewest,
        Self::CompactsTheUncommitted,
        Self::ProducersForgotten,
        Self::DeletesTheActive,
        Self::DeletesTheUncommitted,
        Self::DeletedIsServed,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// For this thread, until another one is.
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

pub(super) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
