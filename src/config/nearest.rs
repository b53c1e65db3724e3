//! The known word that somebody probably meant.

/// The one of `known` that is most like `word`, whatever its case and separators; none only where nothing is known.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Keys come from outside: one of a megabyte would make the comparison quadratic.
    let word = plain(word.chars().take(64));
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(&word, &plain(candidate.chars()));
    known.into_iter().map(|candidate| (likeness(candidate), candidate)).reduce(better).map(|(_, candidate)| candidate)
}

/// The first of equals wins, so that the answer does not depend on anything but the order of what is known.
fn better<'a>(left: (f64, &'a str), right: (f64, &'a str)) -> (f64, &'a str) {
    if right.0 > left.0 { right } else { left }
}

fn plain(chars: impl Iterator<Item = char>) -> String {
    chars.filter(|c| !"_-. ".contains(*c)).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_separators_and_slips_do_not_hide_what_was_meant() {
        let known = ["metadataServices", "storageServices", "prefix", "subjects"];
        for (word, meant) in [
            ("metadata_services", "metadataServices"),
            ("StorageService", "storageServices"),
            ("prefxi", "prefix"),
            ("subject", "subjects"),
        ] {
            assert_eq!(nearest(word, known), Some(meant), "{word}");
        }
        assert_eq!(nearest("x", []), None);
    }
}
