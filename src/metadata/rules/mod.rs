//! The rules: what the controller decides, as pure functions from an image and a wish to records.
