//! Username and password on every call: HTTP Basic (RFC 7617) in the `authorization` metadata.
//!
//! Passwords are kept as SHA-256 digests and compared in constant time; an unknown user costs as much as a known one. Nothing here prints a password.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tonic::{Request, Status, service::Interceptor};

type Fingerprint = [u8; 32];

fn digest(text: &[u8]) -> Fingerprint {
    Sha256::digest(text).into()
}

/// Who may call.
#[derive(Clone, Default)]
pub struct Users(Vec<(Fingerprint, Fingerprint)>);

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} users", self.0.len())
    }
}

impl Users {
    /// Lets a user in with this password.
    pub fn add(&mut self, username: &str, password: &str) {
        self.0
            .push((digest(username.as_bytes()), digest(password.as_bytes())));
    }

    /// Whether the pair is right. Every user is compared, so that time tells nothing.
    #[must_use]
    pub fn knows(&self, username: &str, password: &str) -> bool {
        let (username, password) = (digest(username.as_bytes()), digest(password.as_bytes()));
        let found = self.0.iter().fold(Choice::from(0), |found, (name, word)| {
            found | (name.ct_eq(&username) & word.ct_eq(&password))
        });
        found.into()
    }
}

/// Refuses calls without a right username and password.
#[derive(Clone, Debug)]
pub struct Authenticate(Users);

impl Authenticate {
    /// For these users.
    #[must_use]
    pub fn new(users: Users) -> Self {
        Self(users)
    }
}

fn credentials(header: &str) -> Option<(String, String)> {
    let encoded = header
        .strip_prefix("Basic ")
        .or_else(|| header.strip_prefix("basic "))?;
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

impl Interceptor for Authenticate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let Some(header) = header else {
            return Err(Status::unauthenticated(
                "a username and password are needed (HTTP Basic)",
            ));
        };
        match credentials(header) {
            Some((username, password)) if self.0.knows(&username, &password) => Ok(request),
            _ => Err(Status::unauthenticated("wrong username or password")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(header: Option<&str>) -> Result<(), tonic::Code> {
        let mut users = Users::default();
        users.add("csi", "a:b c");
        let mut request = Request::new(());
        if let Some(header) = header {
            request
                .metadata_mut()
                .insert("authorization", header.parse().unwrap());
        }
        Authenticate::new(users)
            .call(request)
            .map(drop)
            .map_err(|status| status.code())
    }

    #[test]
    fn only_the_right_pair_is_let_in() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(call(Some(&basic("csi:a:b c"))), Ok(()));
        for header in [
            basic("csi:a"),
            basic("csi:"),
            basic("other:a:b c"),
            basic("csi"),
            "Bearer x".into(),
            "Basic !".into(),
        ] {
            assert_eq!(call(Some(&header)), Err(tonic::Code::Unauthenticated), "{header}");
        }
        assert_eq!(call(None), Err(tonic::Code::Unauthenticated));
    }

    #[test]
    fn passwords_do_not_print() {
        let mut users = Users::default();
        users.add("csi", "hunter2");
        assert_eq!(format!("{users:?}"), "1 users");
    }
}
