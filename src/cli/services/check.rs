//! `dmq services check`: every fault of the file, each with its path and what to write instead.

use std::path::Path;

use serde::Serialize;

use super::super::{Outcome, output, output::Output};
use crate::config::{Fault, Services, ServicesFileError, services_file};

#[derive(Serialize)]
struct Answer<'a> {
    file: &'a Path,
    valid: bool,
    faults: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    path: String,
    problem: String,
    remedy: String,
}

pub fn run(path: &Path, out: &mut Output) -> anyhow::Result<Outcome> {
    match services_file::load(path) {
        Ok(services) => {
            let answer = Answer { file: path, valid: true, faults: Vec::new() };
            out.answer(&answer, |_, _| sound(path, &services))?;
            Ok(Outcome::Fine)
        }
        Err(error) => {
            if out.is_json()
                && let ServicesFileError::Faulty { faults, .. } = &error
            {
                let found = |fault: &Fault| Found {
                    path: fault.path.clone(),
                    problem: fault.problem.clone(),
                    remedy: fault.remedy.clone(),
                };
                let answer = Answer { file: path, valid: false, faults: faults.iter().map(found).collect() };
                out.answer(&answer, |_, _| String::new())?;
            }
            output::say(&format!("error: {error}"));
            Ok(Outcome::Unsound)
        }
    }
}

fn sound(path: &Path, services: &Services) -> String {
    let (controllers, storage) = (services.controller_ids().count(), services.storage_ids().count());
    format!("{} is good: {controllers} metadata services, {storage} storage services\n", path.display())
}
