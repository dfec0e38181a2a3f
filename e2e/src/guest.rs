//! A running guest, driven through its agent and its monitor.

use std::{collections::HashMap, os::unix::process::ExitStatusExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::{
    agent::{
        AGENT_PORT, MESSAGE_LIMIT,
        proto::{
            ExecRequest, ForwardRequest, KillRequest, ReadFileRequest, SpawnRequest, WaitRequest,
            WriteFileRequest, agent_client::AgentClient,
        },
    },
    artifacts::Artifacts,
    net::{self, Fabric},
    programs::Finished,
    qemu::{Machine, Process},
    qmp,
};

/// Time for a program in a guest that says nothing else.
const EXEC_LIMIT: Duration = Duration::from_secs(60);
/// How often QEMU may abort before its guest is up.
const ABORTS: u32 = 2;

/// A booted guest. Dropping it is a power loss.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    process: Process,
    agent: AgentClient<Channel>,
}

impl Guest {
    /// A guest whose agent answers already.
    pub(crate) fn new(machine: Machine, process: Process) -> Result<Self> {
        let address = format!("http://198.18.2.{}:{AGENT_PORT}", machine.index);
        let channel = Endpoint::from_shared(address)
            .context("the agent's address")?
            .connect_lazy();
        let agent = AgentClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Ok(Self {
            machine,
            process,
            agent,
        })
    }

    /// Guest name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Last byte of its addresses.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.machine.index
    }

    /// Where its console and logs are on the machine.
    #[must_use]
    pub fn results(&self) -> &Path {
        &self.machine.results
    }

    /// Its address on a network.
    #[must_use]
    pub fn address(&self, fabric: Fabric) -> String {
        format!("198.18.{}.{}", fabric.number(), self.machine.index)
    }

    /// Runs a program to its end within `limit`; any exit code is an answer.
    pub async fn run(&self, argv: &[&str], stdin: &[u8], limit: Duration) -> Result<Finished> {
        let request = ExecRequest {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: HashMap::new(),
            stdin: stdin.to_vec(),
            timeout_ms: millis(limit),
        };
        let done = self
            .agent
            .clone()
            .exec(request)
            .await
            .map_err(|status| self.told(&argv.join(" "), &status))?
            .into_inner();
        Ok(Finished {
            exit: done.exit,
            stdout: done.stdout,
            stderr: done.stderr,
        })
    }

    /// Runs a program that must succeed; returns its standard output without the last line end.
    pub async fn exec(&self, argv: &[&str]) -> Result<String> {
        self.exec_with(argv, &[]).await
    }

    /// [`Guest::exec`] with standard input.
    pub async fn exec_with(&self, argv: &[&str], stdin: &[u8]) -> Result<String> {
        let done = self.run(argv, stdin, EXEC_LIMIT).await?;
        if done.exit != 0 {
            bail!(
                "{}: {}: exit {}: {}{}",
                self.name(),
                argv.join(" "),
                done.exit,
                String::from_utf8_lossy(&done.stdout),
                String::from_utf8_lossy(&done.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }

    /// A small shell script that must succeed; for the suites' own questions to a guest.
    pub async fn shell(&self, script: &str) -> Result<String> {
        self.exec(&["bash", "-ec", script]).await
    }

    /// Starts a program in the background; its log is `<results>/<name>.log`.
    pub async fn spawn(&self, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<u32> {
        let request = SpawnRequest {
            name: name.to_owned(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: env
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        };
        let answer = self
            .agent
            .clone()
            .spawn(request)
            .await
            .map_err(|status| self.told(name, &status))?;
        Ok(answer.into_inner().pid)
    }

    /// Signals a background program and what it started.
    pub async fn kill(&self, name: &str, signal: i32) -> Result<()> {
        let request = KillRequest {
            name: name.to_owned(),
            signal,
        };
        self.agent
            .clone()
            .kill(request)
            .await
            .map_err(|status| self.told(name, &status))
            .map(drop)
    }

    /// Waits for a background program's end; its exit code.
    pub async fn wait(&self, name: &str, limit: Duration) -> Result<i32> {
        let request = WaitRequest {
            name: name.to_owned(),
            timeout_ms: millis(limit),
        };
        let answer = self
            .agent
            .clone()
            .wait(request)
            .await
            .map_err(|status| self.told(name, &status))?;
        Ok(answer.into_inner().exit)
    }

    /// What a background program wrote so far.
    pub fn log(&self, name: &str) -> Result<String> {
        let path = self.machine.results.join(format!("{name}.log"));
        let data = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&data).into_owned())
    }

    /// A file of the guest, as text.
    pub async fn read(&self, path: &str) -> Result<String> {
        let request = ReadFileRequest {
            path: path.to_owned(),
        };
        let answer = self
            .agent
            .clone()
            .read_file(request)
            .await
            .map_err(|status| self.told(path, &status))?;
        Ok(String::from_utf8_lossy(&answer.into_inner().data).into_owned())
    }

    /// Writes a file of the guest, with the directories above it.
    pub async fn write(&self, path: &str, data: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let request = WriteFileRequest {
            path: path.to_owned(),
            data: data.as_ref().to_vec(),
            mode,
        };
        self.agent
            .clone()
            .write_file(request)
            .await
            .map_err(|status| self.told(path, &status))
            .map(drop)
    }

    /// A gRPC channel to a unix socket of the guest, once it accepts.
    pub async fn channel(&self, socket: &str, limit: Duration) -> Result<Channel> {
        let request = ForwardRequest {
            socket: socket.to_owned(),
            timeout_ms: millis(limit),
        };
        let answer = self
            .agent
            .clone()
            .forward(request)
            .await
            .map_err(|status| self.told(socket, &status))?;
        let address = format!(
            "http://{}:{}",
            self.address(Fabric::Management),
            answer.into_inner().port
        );
        Ok(Endpoint::from_shared(address)
            .context("a forwarded socket's address")?
            .connect_lazy())
    }

    /// Stops the guest's processors; everything it holds stays open.
    pub async fn pause(&self) -> Result<()> {
        qmp::command(&self.machine.monitor(), "stop", json!({}))
            .await
            .map(drop)
    }

    /// Lets a paused guest go on.
    pub async fn resume(&self) -> Result<()> {
        qmp::command(&self.machine.monitor(), "cont", json!({}))
            .await
            .map(drop)
    }

    /// Plugs or pulls the cable at the guest: unlike a cut fabric the guest sees the carrier go.
    pub async fn carrier(&self, fabric: Fabric, up: bool) -> Result<()> {
        let arguments = json!({"name": format!("net{}", fabric.number()), "up": up});
        qmp::command(&self.machine.monitor(), "set_link", arguments)
            .await
            .map(drop)
    }

    /// Packets of this guest vanish on `fabric`, silently.
    pub async fn cut(&self, fabric: Fabric) -> Result<()> {
        net::cut(self.name(), fabric).await
    }

    /// Ends [`Guest::cut`].
    pub async fn heal(&self, fabric: Fabric) -> Result<()> {
        net::heal(self.name(), fabric).await
    }

    /// Power loss.
    pub async fn crash(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Power on after [`Guest::crash`]: a fresh root, the same disk. The caller waits for the agent.
    pub(crate) fn restart(&mut self, artifacts: &Artifacts) -> Result<()> {
        self.process = self.machine.start(artifacts)?;
        Ok(())
    }

    /// Waits until QEMU ended for good, with the console's end as the error.
    ///
    /// QEMU that aborted is started again, [`ABORTS`] times at most: its emulation of several processors fails an assertion of its own now and
    /// then while they come up (10.0.2: `iotlb_to_section`), before anything of the guest has begun.
    pub(crate) async fn ended_for_good(
        machine: &Machine,
        process: &mut Process,
        artifacts: &Artifacts,
    ) -> anyhow::Error {
        let mut status = process.ended().await;
        for _ in 0..ABORTS {
            let aborted = status
                .as_ref()
                .is_ok_and(|status| status.signal() == Some(nix::libc::SIGABRT));
            if !aborted {
                break;
            }
            match machine.start(artifacts) {
                Ok(started) => *process = started,
                Err(error) => return error,
            }
            status = process.ended().await;
        }
        let console = std::fs::read(machine.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        anyhow::anyhow!(
            "{}: QEMU ended ({status:?}); end of its console:\n{tail}",
            machine.name
        )
    }

    fn told(&self, what: &str, status: &tonic::Status) -> anyhow::Error {
        anyhow::anyhow!(
            "{}: {what}: {:?}: {}",
            self.name(),
            status.code(),
            status.message()
        )
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
