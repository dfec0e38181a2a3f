//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler and snapshot-controller as processes of this machine, inside the lab's
//! network namespace.
//!
//! They die with the lab's PID namespace. kube-apiserver is killed, never asked to stop: it would drain for a minute.

use std::{
    collections::HashMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{process::Child, sync::Mutex};

use super::{
    binaries::{Binaries, text},
    kubectl::Kubectl,
    pki::{self, API_PORT, User},
};
use crate::{agent::MACHINE, programs, wait};

/// Kubernetes has to be there within this time; seconds are normal.
const START_LIMIT: Duration = Duration::from_secs(90);
/// What `kubectl wait` takes when nobody says otherwise.
const DEFINED_LIMIT: Duration = Duration::from_secs(30);
const ETCD: &str = "http://127.0.0.1:2379";
const AUDIT_POLICY: &str = include_str!("../../kube/audit-policy.yaml");

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    directory: PathBuf,
    authority: String,
    users: Vec<User>,
    binaries: Binaries,
    api: Mutex<Child>,
    others: Vec<Child>,
    /// Parts of the audit log, in bytes: see [`ControlPlane::without_roles`].
    without_roles: Mutex<Vec<Range<usize>>>,
}

impl ControlPlane {
    /// Starts everything; `nodes` get credentials of a kubelet. The management network must be up.
    pub async fn start(binaries: &Binaries, directory: &Path, nodes: &[String]) -> Result<Self> {
        fs::create_dir_all(directory.join("etcd")).context("make the control plane's directory")?;
        pki::make(directory)?;
        let mut users = vec![
            User::new("admin", "admin", "system:masters"),
            User::new("kcm", "system:kube-controller-manager", ""),
            User::new("scheduler", "system:kube-scheduler", ""),
        ];
        users.extend(
            nodes
                .iter()
                .map(|node| User::new(node, &format!("system:node:{node}"), "system:nodes")),
        );
        let lines: Vec<String> = users.iter().map(User::line).collect();
        fs::write(directory.join("tokens"), lines.join("\n") + "\n").context("write the tokens")?;
        fs::write(directory.join("audit-policy.yaml"), AUDIT_POLICY).context("write the audit policy")?;
        let authority = fs::read_to_string(directory.join("ca.crt")).context("read the authority")?;
        for user in &users {
            let file = directory.join(format!("{}.kubeconfig", user.file));
            fs::write(file, user.kubeconfig(&authority)).context("write a kubeconfig")?;
        }
        let data = directory.join("etcd");
        let etcd = process(
            directory,
            "etcd",
            Path::new("etcd"),
            &[
                &format!("--data-dir={}", text(&data)?),
                &format!("--listen-client-urls={ETCD}"),
                &format!("--advertise-client-urls={ETCD}"),
                "--unsafe-no-fsync",
            ],
        )?;
        let api = api_server(binaries, directory)?;
        let mut control = Self {
            directory: directory.to_owned(),
            authority,
            users,
            binaries: binaries.clone(),
            api: Mutex::new(api),
            others: vec![etcd],
            without_roles: Mutex::default(),
        };
        control.ready().await?;
        // They exit when RBAC is not there yet, or the definitions of what they control, so only now.
        control.define_snapshots().await?;
        control.controllers()?;
        Ok(control)
    }

    /// The definitions of VolumeSnapshot and its kin.
    async fn define_snapshots(&self) -> Result<()> {
        let (kubectl, definitions) = (self.kubectl(), self.binaries.snapshot_definitions());
        kubectl
            .run(&["apply", "--server-side", "-k", text(&definitions)?])
            .await?;
        kubectl
            .wait(
                &["customresourcedefinitions", "--all"],
                "condition=Established",
                DEFINED_LIMIT,
            )
            .await
    }

    fn controllers(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).to_string_lossy().into_owned();
        for (name, program, more) in [
            (
                "kcm",
                "kube-controller-manager",
                vec![
                    format!("--root-ca-file={}", file("ca.crt")),
                    format!("--service-account-private-key-file={}", file("sa.key")),
                    "--use-service-account-credentials=true".to_owned(),
                    // Of the default 50 s everybody who waits for a dead node would wait most.
                    "--node-monitor-grace-period=30s".to_owned(),
                ],
            ),
            ("scheduler", "kube-scheduler", Vec::new()),
        ] {
            let kubeconfig = file(&format!("{name}.kubeconfig"));
            let mut arguments: Vec<String> = [
                "kubeconfig",
                "authentication-kubeconfig",
                "authorization-kubeconfig",
            ]
            .map(|option| format!("--{option}={kubeconfig}"))
            .into();
            arguments.push("--leader-elect=false".to_owned());
            arguments.extend(more);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let child = process(
                &self.directory,
                program,
                &self.binaries.kubernetes(program),
                &arguments,
            )?;
            self.others.push(child);
        }
        // As a distribution brings it, but not in a pod: its cache, on an emulated processor, is behind what Kubernetes' own
        // storage specs have just changed, and a snapshot's content stays for ever.
        let child = process(
            &self.directory,
            "snapshot-controller",
            &self.binaries.sidecar("snapshot-controller"),
            &[
                &format!("--kubeconfig={}", file("admin.kubeconfig")),
                "--leader-election=false",
                "--v=2",
            ],
        )?;
        self.others.push(child);
        Ok(())
    }

    /// Waits until the API server says that it is ready.
    async fn ready(&self) -> Result<()> {
        let kubectl = self.kubectl();
        let log = self.directory.join("kube-apiserver.log");
        let mut api = self.api.lock().await;
        tokio::select! {
            ready = wait::until("kube-apiserver", START_LIMIT, async || {
                Ok(kubectl.run(&["get", "--raw", "/readyz"]).await? == "ok")
            }) => ready.map(drop),
            end = api.wait() => bail!("kube-apiserver ended ({end:?}), see {}", log.display()),
        }
    }

    /// kubectl as the cluster's administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.binaries.kubernetes("kubectl"), self.kubeconfig("admin"))
    }

    /// The file with a user's access.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.join(format!("{user}.kubeconfig"))
    }

    /// What [`ControlPlane::kubeconfig`] holds.
    ///
    /// # Panics
    /// When the cluster has no such user.
    #[must_use]
    pub fn access(&self, user: &str) -> String {
        let user = self
            .users
            .iter()
            .find(|u| u.file == user)
            .unwrap_or_else(|| panic!("no user {user}"));
        user.kubeconfig(&self.authority)
    }

    /// The API server goes away; etcd and the controllers stay.
    pub async fn kill_api(&self) -> Result<()> {
        self.api.lock().await.kill().await.context("kill kube-apiserver")
    }

    /// The API server comes back.
    pub async fn restart_api(&self) -> Result<()> {
        // It answers before it is ready, which is before it has read the roles: what it denies until then says nothing of them.
        self.without_roles(async {
            *self.api.lock().await = api_server(&self.binaries, &self.directory)?;
            self.ready().await
        })
        .await
    }

    /// Does something during which roles are not in force; what is denied then is not in [`ControlPlane::audit_with_roles`].
    pub async fn without_roles<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let begin = self.audit()?.len();
        let outcome = work.await;
        let mut parts = self.without_roles.lock().await;
        parts.push(begin..self.audit()?.len());
        outcome
    }

    /// The audit log: a JSON object a line.
    pub fn audit(&self) -> Result<String> {
        fs::read_to_string(self.directory.join("audit.log")).context("read the audit log")
    }

    /// The audit log of the times when the roles were in force.
    pub async fn audit_with_roles(&self) -> Result<String> {
        let mut log = self.audit()?;
        for part in self.without_roles.lock().await.iter().rev() {
            log.drain(part.clone());
        }
        Ok(log)
    }
}

fn api_server(binaries: &Binaries, directory: &Path) -> Result<Child> {
    let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let key = file("sa.key");
    process(
        directory,
        "kube-apiserver",
        &binaries.kubernetes("kube-apiserver"),
        &[
            &format!("--etcd-servers={ETCD}"),
            "--bind-address=0.0.0.0",
            &format!("--secure-port={API_PORT}"),
            &format!("--advertise-address={MACHINE}"),
            "--service-cluster-ip-range=10.96.0.0/16",
            &format!("--tls-cert-file={}", file("api.crt")),
            &format!("--tls-private-key-file={}", file("api.key")),
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={}", file("sa.pub")),
            &format!("--service-account-signing-key-file={key}"),
            &format!("--token-auth-file={}", file("tokens")),
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            &format!("--audit-policy-file={}", file("audit-policy.yaml")),
            &format!("--audit-log-path={}", file("audit.log")),
        ],
    )
}

/// A process whose log is `<directory>/<name>.log`; a restarted one appends.
fn process(directory: &Path, name: &str, program: &Path, arguments: &[&str]) -> Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join(format!("{name}.log")))
        .with_context(|| format!("make {name}'s log"))?;
    let mut argv = vec![text(program)?.to_owned()];
    argv.extend(arguments.iter().map(|&word| word.to_owned()));
    programs::background(&argv, &HashMap::new(), log, true).with_context(|| format!("start {name}"))
}
