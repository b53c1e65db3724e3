//! Which texts are NATS subjects that a service may have, and which subjects would meet.

use super::tree::shown;

/// The longest subject, in bytes. The server's control line would take 4 KiB; nobody can read that.
pub const MAX_SUBJECT_BYTES: usize = 255;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubjectError {
    #[error("a subject cannot be empty")]
    Empty,
    #[error("{0} is a URL; dmq's processes meet on NATS subjects and have no URLs")]
    Url(String),
    #[error("{0} begins with '$', which NATS keeps for itself")]
    Dollar(String),
    #[error("{0} holds the wildcard '{1}'; a service has one subject")]
    Wildcard(String, char),
    #[error("{0} holds {1:?}; NATS takes no spaces or control characters in a subject")]
    Character(String, char),
    #[error("{0} has an empty token: it begins or ends with '.', or holds '..'")]
    EmptyToken(String),
    #[error("{0} is longer than {MAX_SUBJECT_BYTES} bytes")]
    TooLong(String),
    #[error("{0} lies where NATS clients receive their answers")]
    Inbox(String),
}

/// Whether a service may have this subject, apart from what others have.
pub(super) fn check(subject: &str) -> Result<(), SubjectError> {
    if subject.is_empty() {
        return Err(SubjectError::Empty);
    }
    if subject.contains("://") {
        return Err(SubjectError::Url(shown(subject)));
    }
    if subject.starts_with('$') {
        return Err(SubjectError::Dollar(shown(subject)));
    }
    if let Some(wildcard) = subject.chars().find(|c| "*>".contains(*c)) {
        return Err(SubjectError::Wildcard(shown(subject), wildcard));
    }
    if let Some(bad) = subject.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(SubjectError::Character(shown(subject), bad));
    }
    if subject.split('.').any(str::is_empty) {
        return Err(SubjectError::EmptyToken(shown(subject)));
    }
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(SubjectError::TooLong(shown(subject)));
    }
    if subject.split('.').next() == Some("_INBOX") {
        return Err(SubjectError::Inbox(shown(subject)));
    }
    Ok(())
}

/// Whether some subject matches both patterns (`*` one token, `>` one or more).
pub(super) fn meet(left: &str, right: &str) -> bool {
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(l), Some(r)) if l == r || l == "*" || r == "*" => {}
            (Some(_), Some(_)) | (None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nats_would_refuse_is_refused() {
        type Make = fn(String) -> SubjectError;
        let cases: [(&str, Make); 9] = [
            ("http://host:80/push", SubjectError::Url),
            ("$SYS.x", SubjectError::Dollar),
            ("a.*", |s| SubjectError::Wildcard(s, '*')),
            ("a.>", |s| SubjectError::Wildcard(s, '>')),
            ("a b", |s| SubjectError::Character(s, ' ')),
            ("a\u{7}", |s| SubjectError::Character(s, '\u{7}')),
            (".a", SubjectError::EmptyToken),
            ("a..b", SubjectError::EmptyToken),
            ("_INBOX.a", SubjectError::Inbox),
        ];
        for (subject, error) in cases {
            assert_eq!(check(subject), Err(error(format!("{subject:?}"))));
        }
        assert_eq!(check(""), Err(SubjectError::Empty));
        assert!(matches!(check(&"a".repeat(256)), Err(SubjectError::TooLong(_))));
        assert_eq!(check(&"a".repeat(255)), Ok(()));
        assert_eq!(check("größe.a$b._x"), Ok(()));
    }

    #[test]
    fn patterns_meet_where_one_subject_matches_both() {
        for (left, right, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.*", "*.b", true),
            ("a.*.c", "a.b", false),
            ("a.b", "a.c", false),
            (">", "a.>", true),
        ] {
            assert_eq!(meet(left, right), expected, "{left} {right}");
            assert_eq!(meet(right, left), expected, "{right} {left}");
        }
    }
}
