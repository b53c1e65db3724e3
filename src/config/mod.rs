//! What a person decides: services.json (who is there, on which subjects, paired with whom), the settings, and how to
//! reach NATS.
//!
//! Everything from outside is checked here, all faults at once, each with its place and with what to write instead.
//! Nothing here knows the protocol or the metadata.

pub mod nats;
mod nearest;
pub mod services;
pub mod services_file;
pub mod settings;

pub use nats::{
    ConnectError, ConnectPlan, Connected, ConnectionEvent, ConnectionState, NatsTarget, NatsTargetError, connect,
    connect_options,
};
pub use services::{ControllerSubjects, DataTarget, Fault, Owner, Services, StorageSubjects};
pub use services_file::{ServicesFileError, Watcher};
pub use settings::{NatsSettings, Settings, SettingsError, Sources, Variables};
