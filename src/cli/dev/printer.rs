//! What `dmq dev` prints. A terminal that stands still (Ctrl-S, a full pipe) must not stop the children, whose logs pass here.

use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use crate::cli::output;

/// How many lines wait for the terminal; more are dropped, the log files have them.
const WAITING: usize = 1_024;

#[derive(Clone)]
pub struct Printer {
    lines: SyncSender<Line>,
}

enum Line {
    Text(String),
    Flush(SyncSender<()>),
}

impl Printer {
    pub fn start() -> std::io::Result<Self> {
        let (lines, receiver) = mpsc::sync_channel(WAITING);
        std::thread::Builder::new().name("printer".into()).spawn(move || {
            let mut out = output::Output::new(output::Format::Table);
            for line in receiver {
                match line {
                    // Nobody reads: the cluster runs on, and the logs are in their files.
                    Line::Text(text) => drop(out.line(&text)),
                    // Whoever asked may have stopped waiting.
                    Line::Flush(done) => drop(done.try_send(())),
                }
            }
        })?;
        Ok(Self { lines })
    }

    /// Prints nothing: for children of whom only the logs are wanted.
    pub fn silent() -> Self {
        // Its receiver is gone, so that whatever is sent is dropped at once.
        Self { lines: mpsc::sync_channel(0).0 }
    }

    pub fn print(&self, text: String) {
        // Full: the terminal stands still.
        let _ = self.lines.try_send(Line::Text(text));
    }

    /// Waits until what was printed before is written, for a moment at most.
    pub fn flush(&self) {
        let (done, finished) = mpsc::sync_channel(1);
        if self.lines.try_send(Line::Flush(done)).is_ok() {
            let _ = finished.recv_timeout(Duration::from_millis(500));
        }
    }
}
