//! What can go wrong between a process and NATS, by what the caller can do about it.

/// Why a call on the bus gave no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BusError {
    /// Nothing was sent. Wait for the next generation of the connection, then try again.
    #[error("not connected to NATS")]
    Disconnected,
    /// No answer came in time. Reading may simply be repeated; what was written may or may not have taken effect.
    #[error("no answer from NATS in time")]
    Timeout,
    /// Nobody subscribes to the subject, and nothing took effect. Look again for who serves it.
    #[error("nobody listens on {subject}")]
    NoResponders { subject: String },
    /// The server, or this account, has no JetStream. Only an operator can help.
    #[error("JetStream is not enabled on this server or for this account")]
    NoJetStream,
    /// JetStream has no leader or is starting. Try again in a moment.
    #[error("JetStream cannot serve at the moment: {0}")]
    Unavailable(String),
    /// There is no such stream, bucket or object. Create it, or take it for lost.
    #[error("{0} does not exist")]
    Missing(String),
    /// Nothing was sent: the message is larger than the server takes. Split it.
    #[error("a message of {size} bytes exceeds the server's limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// Nothing was sent: NATS would not carry a subject or a name like this. Our own caller is wrong.
    #[error("{0} is no usable name or subject")]
    InvalidName(String),
    /// The server understood and refused. Trying again does not help.
    #[error("refused by NATS: {text} ({code})")]
    Refused { code: u64, text: String },
    /// The answer could not be understood, or came from somebody else.
    #[error("an answer that makes no sense: {0}")]
    Malformed(String),
    /// What was stored is not what was read. Take another copy.
    #[error("{0} is damaged")]
    Corrupt(String),
    /// The caller's own input could not be read.
    #[error("reading what is to be sent: {0}")]
    Input(String),
}
