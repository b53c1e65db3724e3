//! Bugs that can be planted in the shipped cores, each at the one line that keeps a rule, to show that the rule's check can
//! fail. Only test builds have the lines, and only the thread that asks for a bug has it.

use std::cell::Cell;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Who begins from a snapshot counts one topic more.
    StateOfItsOwn,
    /// A storage node acknowledges what is not on its disk yet.
    AcknowledgedEarly,
    /// A lease does not end.
    EndlessLease,
    /// A new leader has the epoch of the one before.
    SameLeaderEpoch,
    /// A fenced node goes on leading.
    FencedLeads,
    /// A controller passes over the election of another.
    Deposed,
    /// A retry is taken for a new request.
    RetriedAnew,
    /// A snapshot leaves out how many topics there were.
    ForgetfulSnapshot,
    /// Heartbeats of older incarnations count.
    OldIncarnation,
    /// A new controller takes silence for death at once.
    Impatient,
    /// A controller never fences who is silent.
    Deaf,
    /// A shutdown is granted before the others know of it.
    EarlyShutdown,
    /// A node applies anybody's push.
    AnyonesPush,
    /// A fenced node stays fenced.
    FencedForGood,
    /// A follower says of what it has written that it is on its disk.
    UnflushedCounts,
    /// A leader shows what it knows before it knows how far its predecessor showed.
    ShownEarly,
    /// A leader sends records to whose log has another history.
    DivergenceUnseen,
    /// Acknowledgements do not want enough replicas in sync.
    AloneIsEnough,
    /// A follower joins the in-sync replicas with whatever it has.
    JoinsEarly,
    /// Whom a leader asked for, without an answer, does not count.
    AdmissionForgotten,
    /// A follower cuts off all that it has.
    CutsTooMuch,
    /// A node without a lease goes on acknowledging.
    LeaselessAck,
    /// A retry is acknowledged though its original is not committed.
    RetryAtOnce,
    /// A replica that is not in sync leads though its topic forbids that.
    UncleanAnyway,
    /// A node that comes back with an empty disk counts as in sync, as the one was that it replaces.
    EmptyDiskTrusted,
    /// What a failed sync had to write is taken for stored.
    FailedSyncTrusted,
    /// What the disk did not take is acknowledged.
    FailedAppendStored,
    /// A damaged replica is cut before its leader says that nobody counts on it.
    CutsBeforeItLeft,
    /// Who makes no progress is given leases as long as anybody's.
    IdleLease,
    /// A disk that was set back counts as what it was.
    SetBackTrusted,
    /// A restore gives out the leader epochs next to those that it knows.
    RestoredTooLow,
    /// The directory of a topic that was deleted is taken for that of a topic with the same name.
    OtherTopicTrusted,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// For this thread, until another one is.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
