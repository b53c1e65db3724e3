//! `dmq services show`: the file as dmq understands it.

use std::path::Path;

use super::super::table::{Column, Table, list, or_dash};
use super::super::{Outcome, output::Output};
use crate::config::{Services, services_file};

pub fn run(path: &Path, out: &mut Output) -> anyhow::Result<Outcome> {
    let services = services_file::load(path)?;
    if out.is_json() {
        out.line(services.to_json().trim_end())?;
    } else {
        out.line(table(&services, out.width()).trim_end())?;
    }
    Ok(Outcome::Fine)
}

fn table(services: &Services, width: usize) -> String {
    let columns = [Column::Number("CONTROLLER"), Column::Text("FETCH"), Column::Text("PAIRED WITH STORAGE")];
    let mut controllers = Table::new(&columns, width);
    for id in services.controller_ids() {
        let paired: Vec<_> = services.paired_with(id).collect();
        controllers.row([id.to_string(), services.controller(id).fetch, list(&paired)]);
    }
    let columns = [
        Column::Number("STORAGE"),
        Column::Text("HEARTBEAT"),
        Column::Text("PUSH"),
        Column::Text("PAIRED WITH"),
        Column::Text("RACK"),
    ];
    let mut nodes = Table::new(&columns, width);
    for id in services.storage_ids() {
        let subjects = services.storage(id);
        let (pairing, rack) = (or_dash(services.pairing(id)), or_dash(services.rack(id)));
        nodes.row([id.to_string(), subjects.heartbeat, subjects.push, pairing, rack]);
    }
    format!("{}\n{}", controllers.render(), nodes.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_that_were_left_out_are_shown() {
        let text = r#"{"metadataServices": [{"id": 0, "pairedStorageServiceIds": [1]}],
                       "storageServices": [{"id": 1, "pairedMetadataServiceId": 0}]}"#;
        let wanted = "\
CONTROLLER  FETCH                 PAIRED WITH STORAGE
         0  dmq.metadata.fetch.0  1

STORAGE  HEARTBEAT        PUSH                 PAIRED WITH  RACK
      1  dmq.heartbeat.1  dmq.metadata.push.1  0            -
";
        assert_eq!(table(&Services::parse(text).unwrap(), 80), wanted);
    }
}
