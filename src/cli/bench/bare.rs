//! A process that answers whatever it hears with as many bytes as a heartbeat's answer has: the floor of all that answers.

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;

use super::super::Outcome;

#[derive(clap::Args, Debug)]
pub struct Args {
    url: String,
    subject: String,
}

/// About what a heartbeat's answer takes.
const ANSWER_BYTES: usize = 450;

pub async fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = async_nats::connect(&args.url).await.with_context(|| format!("connect to {}", args.url))?;
    let mut heard = client.subscribe(args.subject.clone()).await?;
    // A task among others, as in any process: on the main thread each message would cost a switch of threads.
    let answering = tokio::spawn(async move {
        while let Some(message) = heard.next().await {
            let Some(reply) = message.reply else { continue };
            client.publish(reply, Bytes::from_static(&[b'x'; ANSWER_BYTES])).await?;
        }
        anyhow::Ok(())
    });
    answering.await??;
    Ok(Outcome::Fine)
}
