//! What a single value cannot show: what settings ask of each other, and the ranges of a whole made by hand.

use super::table::{Kind, spec};
use super::{NatsSettings, Settings, SettingsError};

/// In bytes a second. Slower than that, a batch of the usual largest size would take hours.
const SLOWEST_CATCH_UP: u64 = 1_000;

impl Settings {
    /// What a single value cannot show: ranges of a whole made by hand, and what settings ask of each other.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let mut faults = self.out_of_range();
        let mut demand = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let (beat, session) = (self.heartbeat_interval_ms, self.session_timeout_ms);
        demand(
            beat.saturating_mul(3) <= session,
            format!(
                "session_timeout_ms = {session} must be at least three times heartbeat_interval_ms = {beat}: {} or more",
                beat.saturating_mul(3)
            ),
        );
        let (min, max) = (self.push_retry_min_ms, self.push_retry_max_ms);
        demand(min <= max, format!("push_retry_min_ms = {min} must not be above push_retry_max_ms = {max}"));
        demand(
            [0, 1, 3, 5].contains(&self.stream_replicas),
            format!("stream_replicas = {} must be 0, 1, 3 or 5", self.stream_replicas),
        );
        let rate = self.catch_up_bytes_per_second;
        demand(
            rate == 0 || rate >= SLOWEST_CATCH_UP,
            format!("catch_up_bytes_per_second = {rate} must be 0, for no limit, or at least {SLOWEST_CATCH_UP}"),
        );
        demand(
            is_log_level(&self.log_level),
            format!(
                "log_level = {:?} must be off, error, warn, info, debug or trace, or a list such as info,dmq=debug",
                self.log_level
            ),
        );
        self.nats.demands(&mut demand);
        if faults.is_empty() { Ok(()) } else { Err(SettingsError::Faults(faults)) }
    }

    fn out_of_range(&self) -> Vec<String> {
        let numbers = [
            ("heartbeat_interval_ms", self.heartbeat_interval_ms),
            ("session_timeout_ms", self.session_timeout_ms),
            ("lease_ms", self.lease_ms),
            ("admin_wait_ms", self.admin_wait_ms),
            ("drain_timeout_ms", self.drain_timeout_ms),
            ("push_retry_min_ms", self.push_retry_min_ms),
            ("push_retry_max_ms", self.push_retry_max_ms),
            ("push_max_bytes", self.push_max_bytes as u64),
            ("snapshot_every_entries", self.snapshot_every_entries),
            ("snapshot_every_bytes", self.snapshot_every_bytes),
            ("history_probe_ms", self.history_probe_ms),
            ("leader_balance_interval_ms", self.leader_balance_interval_ms),
            ("start_timeout_ms", self.start_timeout_ms),
            ("catch_up_bytes_per_second", self.catch_up_bytes_per_second),
            ("page_cache_bytes", self.page_cache_bytes),
            ("stray_retention_ms", self.stray_retention_ms),
            ("nats.ping_interval_ms", self.nats.ping_interval_ms),
        ];
        let fault = |(key, value): (&str, u64)| {
            let Kind::Number { min, max } = spec(key)?.kind else { return None };
            (!(min..=max).contains(&value)).then(|| format!("{key} = {value} must be between {min} and {max}"))
        };
        numbers.into_iter().filter_map(fault).collect()
    }
}

impl NatsSettings {
    fn demands(&self, demand: &mut impl FnMut(bool, String)) {
        let ways = [
            ("nats.creds", self.creds.is_some()),
            ("nats.nkey", self.nkey.is_some()),
            ("nats.user", self.user.is_some()),
            ("nats.token", self.token.is_some()),
        ];
        let set: Vec<&str> = ways.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect();
        demand(set.len() <= 1, format!("{} exclude each other: keep one", set.join(" and ")));
        for (user, password, names) in [
            (&self.user, &self.password, "nats.user and nats.password"),
            (&self.system_user, &self.system_password, "nats.system_user and nats.system_password"),
        ] {
            demand(user.is_some() == password.is_some(), format!("{names} go together: set both or neither"));
        }
        demand(
            self.cert.is_some() == self.key.is_some(),
            "nats.cert and nats.key go together: set both or neither".to_owned(),
        );
        demand(
            self.system_user.is_none() || self.system_creds.is_none(),
            "nats.system_user and nats.system_creds exclude each other: keep one".to_owned(),
        );
        if let Some(prefix) = &self.inbox_prefix {
            demand(
                is_subject(prefix),
                format!("nats.inbox_prefix = {prefix:?} must be a subject: words with dots between them, no * or >"),
            );
        }
    }
}

/// Whether answers' subjects may start with it.
pub(in crate::config) fn is_subject(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"*>.".contains(c);
    word.len() <= 249 && word.split('.').all(|token| !token.is_empty() && token.chars().all(plain))
}

fn is_log_level(directives: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    directives.split(',').all(|directive| match directive.trim().rsplit_once('=') {
        Some((part, word)) => !part.is_empty() && level(word),
        None => level(directive.trim()),
    })
}
