//! An operator, an account with JetStream and a user, as `nsc` would make them: JSON Web Tokens signed with nkeys.

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
}

impl Operator {
    pub fn new() -> Self {
        Self { operator: KeyPair::new_operator(), account: KeyPair::new_account(), system: KeyPair::new_account() }
    }

    /// A server's configuration that trusts this operator and knows its accounts.
    pub fn configuration(&self) -> String {
        let account = |name: &str, key: &KeyPair, jetstream: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream,
            });
            let nats = json!({"limits": limits, "type": "account", "version": 2});
            token(name, &key.public_key(), &self.operator, nats)
        };
        let operator =
            token("O", &self.operator.public_key(), &self.operator, json!({"type": "operator", "version": 2}));
        format!(
            "jetstream: enabled\noperator: {operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{\n\
             {system}: {}\n{}: {}\n}}\n",
            account("SYS", &self.system, 0),
            self.account.public_key(),
            account("DMQ", &self.account, -1),
            system = self.system.public_key(),
        )
    }

    /// The text of a credentials file of a new user, who may do everything in the account.
    pub fn credentials(&self) -> String {
        self.credentials_signed_by(&self.account)
    }

    /// As [`Operator::credentials`], of an account that nobody knows.
    pub fn stranger() -> String {
        Self::new().credentials()
    }

    fn credentials_signed_by(&self, account: &KeyPair) -> String {
        let user = KeyPair::new_user();
        let nats = json!({"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2});
        let jwt = token("u", &user.public_key(), account, nats);
        let seed = user.seed().unwrap();
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

fn token(name: &str, subject: &str, issuer: &KeyPair, nats: Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let claims = json!({
        "jti": format!("{name}-{subject}"), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject,
        "nats": nats,
    });
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}
