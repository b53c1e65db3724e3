//! Lists of NATS URLs, and the credentials that URLs may carry.

use super::ConnectError;
use super::target::Credentials;

/// URLs without `user:password@`, for people to read.
pub(in crate::config) fn without_credentials(urls: &str) -> String {
    urls.split(',').map(|url| split_credentials(url.trim()).0).collect::<Vec<_>>().join(",")
}

pub(super) fn servers_of(urls: &str) -> Vec<String> {
    let url = |url: &str| split_credentials(url.trim()).0;
    urls.split(',').map(url).filter(|url| !url.is_empty()).collect()
}

/// The credentials that URLs carry, which must agree: one connection has one user.
pub(super) fn credentials_of(urls: &str) -> Result<Option<Credentials>, ConnectError> {
    let mut found = None;
    for (user, password) in urls.split(',').filter_map(|url| split_credentials(url.trim()).1) {
        let credentials = match password {
            Some(password) => Credentials::User(user, password),
            None => Credentials::Token(user),
        };
        if found.as_ref().is_some_and(|found| *found != credentials) {
            let servers = without_credentials(urls);
            return Err(ConnectError::Settings(format!(
                "the URLs of {servers} carry different credentials: give one for all"
            )));
        }
        found = Some(credentials);
    }
    Ok(found)
}

/// The URL without its credentials, and the user and password, or the token, in them.
fn split_credentials(url: &str) -> (String, Option<(String, Option<String>)>) {
    let (scheme, rest) = url.find("://").map_or(("", url), |at| url.split_at(at + 3));
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    // A password may hold a slash although it should not: the last @ decides.
    let (authority, tail) = if host.contains('@') { (host, path) } else { (rest, "") };
    match authority.rsplit_once('@') {
        Some((credentials, host)) => {
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (decoded(user), Some(decoded(password))),
                None => (decoded(credentials), None),
            };
            (format!("{scheme}{host}{tail}"), Some((user, password)))
        }
        None => (url.to_owned(), None),
    }
}

/// Without percent signs' encoding; what is none stays.
pub(super) fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.filter(|hex| !hex.starts_with('+')).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) => {
                plain.push(code);
                at += 3;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}
