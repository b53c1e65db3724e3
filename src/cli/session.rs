//! A command's way to the cluster: one connection to NATS and a client of the admin verbs, within the command's deadline.

use std::time::Duration;

use tokio::time::Instant;

use super::global::GlobalArgs;
use super::process;
use crate::client::Admin;
use crate::config::{self, Services};

pub struct Session {
    pub client: async_nats::Client,
    pub admin: Admin,
    pub services: Services,
    /// What is left of the command's time.
    pub left: Duration,
}

pub async fn open(global: &GlobalArgs) -> anyhow::Result<Session> {
    let deadline = Instant::now() + global.deadline();
    let settings = process::settings(global)?;
    let named = process::services_now(&settings)?;
    // Some time has to be left for the question itself.
    let connecting = global.deadline() * 3 / 4;
    let client = config::connect(&settings.nats, "dmq command line", connecting, false).await?.client;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let admin = Admin::new(client.clone(), named.admin_prefix()).within(left);
    Ok(Session { client, admin, services: named, left })
}
