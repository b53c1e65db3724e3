//! SIGTERM and SIGINT, as messages.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::ProcessError;

/// Runs what is told of each SIGTERM and SIGINT.
///
/// # Errors
/// `System` where the signals cannot be had; else what it comes to.
pub async fn with_signals<F>(run: impl FnOnce(mpsc::Receiver<()>) -> F) -> Result<(), ProcessError>
where
    F: Future<Output = Result<(), ProcessError>>,
{
    let (sender, told) = mpsc::channel(2);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listening = tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    let result = run(told).await;
    listening.abort();
    result
}
