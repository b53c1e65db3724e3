//! What reaches the terminal: results on stdout, everything else on stderr. A reader that went away is no error.

use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// Stdout, as a command writes to it.
pub struct Output {
    format: Format,
    closed: bool,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format, closed: false }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether the reader went away: whoever goes on writing for ever should stop.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many columns a table may have: those of the terminal, or any number where the output goes elsewhere.
    pub fn width(&self) -> usize {
        if !io::stdout().is_terminal() {
            return usize::MAX;
        }
        terminal_size::terminal_size().map_or(80, |(width, _)| width.0.into())
    }

    /// Writes the answer as JSON, or in the words that `table` makes of it.
    pub fn answer<T: Serialize>(&mut self, answer: &T, table: impl FnOnce(&T, usize) -> String) -> anyhow::Result<()> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string_pretty(answer)?),
            Format::Table => {
                let text = table(answer, self.width());
                self.line(text.trim_end_matches('\n'))
            }
        }
    }

    /// Writes a line at once.
    pub fn line(&mut self, text: &str) -> anyhow::Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    pub fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(anyhow::Error::new(error).context("write to stdout")),
        }
    }
}

/// Writes a line to stderr. Where that is closed, there is nobody left to tell.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
