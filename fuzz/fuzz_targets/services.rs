//! services.json: whatever is taken is written again, and then reads the same.
#![no_main]

use dmq::config::Services;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(services) = Services::parse(text) {
        assert_eq!(Services::parse(&services.to_json()), Ok(services));
    }
    if let Ok(services) = Services::default_with(text) {
        let _ = services.read_data_subject(text);
    }
    let _ = Services::default().read_data_subject(text);
});
