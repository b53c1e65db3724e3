//! A command's way to the cluster: one connection to NATS and a client of the admin verbs, within the command's deadline.

use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::global::GlobalArgs;
use crate::client::Admin;

pub struct Session {
    pub client: async_nats::Client,
    pub admin: Admin,
}

pub async fn open(global: &GlobalArgs) -> anyhow::Result<Session> {
    let deadline = Instant::now() + global.deadline();
    let client = connect(global, deadline).await?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let admin = Admin::new(client.clone(), "dmq.admin").within(left);
    Ok(Session { client, admin })
}

async fn connect(global: &GlobalArgs, deadline: Instant) -> anyhow::Result<async_nats::Client> {
    let from_env = || std::env::var("DMQ_NATS_URL").or_else(|_| std::env::var("NATS_URL")).ok();
    let urls = if global.nats_url.is_empty() {
        from_env().unwrap_or_else(|| "nats://127.0.0.1:4222".into())
    } else {
        global.nats_url.join(",")
    };
    let servers: Vec<_> = urls.split(',').map(|url| url.trim().to_owned()).collect();
    let connecting = async_nats::ConnectOptions::new().name("dmq command line").connect(servers);
    let connected = tokio::time::timeout_at(deadline, connecting).await.context("no answer in time");
    connected.and_then(|connected| Ok(connected?)).with_context(|| format!("cannot reach NATS at {urls}"))
}
