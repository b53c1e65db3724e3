//! A command's way to the cluster: one connection to NATS and a client of the admin verbs, within the command's deadline.

use std::time::Duration;

use tokio::time::Instant;

use super::global::GlobalArgs;
use super::settings::Loaded;
use crate::client::Admin;
use crate::config::{ConnectPlan, Connected, Services, connect};

pub struct Session {
    pub connected: Connected,
    pub admin: Admin,
    pub services: Services,
}

pub async fn open(global: &GlobalArgs) -> anyhow::Result<Session> {
    let deadline = Instant::now() + global.deadline();
    let loaded = Loaded::from(global)?;
    let services = loaded.services()?;
    // Half of the time: whoever has no server shall hear it, and a controller that is found needs time as well.
    let plan =
        ConnectPlan { name: "dmq command line".into(), deadline: global.deadline() / 2, require_jetstream: false };
    let connected = connect(&loaded.target, &plan).await?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let admin = Admin::new(connected.client.clone(), services.admin_prefix()).within(left);
    Ok(Session { connected, admin, services })
}
