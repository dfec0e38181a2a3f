//! The configuration of storagelinkd with one user and one system of one reflink aggregate, as every array of the tests has it.
//!
//! Only the text: whoever runs the gateway writes it where that gateway reads it, and the password beside it.

use std::fmt::Display;

/// What differs between arrays.
#[derive(Debug)]
pub(crate) struct GatewayConfiguration<'a> {
    /// TCP port, at every address.
    pub(crate) port: u16,
    /// Directory of its records.
    pub(crate) state: &'a str,
    /// Its user.
    pub(crate) user: &'a str,
    /// File with the user's password.
    pub(crate) password_file: &'a str,
    /// Name of the system.
    pub(crate) system: &'a str,
    /// iSCSI name of the target.
    pub(crate) target: &'a str,
    /// Name of the aggregate.
    pub(crate) aggregate: &'a str,
    /// Where the aggregate's file system is mounted.
    pub(crate) path: &'a str,
}

impl GatewayConfiguration<'_> {
    /// The file's text, with these portals as address and port.
    pub(crate) fn text<P: Display>(&self, portals: impl IntoIterator<Item = P>) -> String {
        let portals: Vec<String> = portals
            .into_iter()
            .map(|portal| format!("\"{portal}\""))
            .collect();
        format!(
            r#"listen = "0.0.0.0:{port}"
state_dir = "{state}"

[[user]]
username = "{user}"
password_file = "{password_file}"

[[system]]
name = "{system}"
adapter = "lio"
target = "{target}"
portals = [{portals}]

[[system.aggregate]]
name = "{aggregate}"
kind = "reflink"
path = "{path}"
"#,
            port = self.port,
            state = self.state,
            user = self.user,
            password_file = self.password_file,
            system = self.system,
            target = self.target,
            portals = portals.join(", "),
            aggregate = self.aggregate,
            path = self.path,
        )
    }
}
