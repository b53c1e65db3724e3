//! What a person decides: services.json (who is there, on which subjects, paired with whom), the settings, and how to
//! reach NATS.
//!
//! Everything from outside is checked here, all faults at once, each with its place and with what to write instead.
//! Nothing here knows the protocol or the metadata.

mod nats;
mod nearest;
pub mod services;
pub mod services_file;
mod settings;

pub use nats::{ConnectError, Connection, connect, connect_system};
pub use services::{ControllerSubjects, DataTarget, Fault, Owner, Services, StorageSubjects};
pub use services_file::{ServicesFileError, Watcher};
pub use settings::{LogFormat, NatsSettings, SettingDoc, Settings, SettingsError, table};
