//! One child process: started in its own process group, read to the end, killed with its group when time is up or the
//! caller goes away.

use std::{path::Path, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout, timeout_at},
};

use storagelink_multipath::host::kernel::NetNamespace;

use super::{Exit, Finished, Invocation, OUTPUT_LIMIT, ProgramError, quote};

/// How long to go on reading after the program ended, in case that something it started holds its output open.
const DRAIN: Duration = Duration::from_millis(200);

/// How long to wait for the end of a killed program. One that sleeps in the kernel is left to the runtime to reap.
const REAP: Duration = Duration::from_millis(500);

/// Kills a process group when dropped, unless its leader has been waited for: until then its number cannot be reused.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = self.0 {
            // ESRCH only says that everything in it has ended.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `executable` with `before` and the invocation's own arguments, in this network namespace.
pub(super) async fn run(
    executable: &Path,
    before: &[String],
    path: &str,
    invocation: &Invocation,
    network: &NetNamespace,
) -> Result<Finished, ProgramError> {
    let program = invocation.program;
    let begun = Instant::now();
    let deadline = begun + invocation.timeout;
    let mut child =
        spawn(executable, before, path, &invocation.args, network).map_err(|source| ProgramError::Start {
            program,
            path: executable.to_owned(),
            source,
        })?;
    let mut group = Group(
        child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw),
    );

    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let status = {
        let mut reading = std::pin::pin!(async {
            tokio::join!(read_bounded(out, &mut stdout), read_bounded(err, &mut stderr));
        });
        let waiting = async {
            let mut read = false;
            loop {
                tokio::select! {
                    status = child.wait() => return (status, read),
                    () = &mut reading, if !read => read = true,
                }
            }
        };
        let ended = timeout_at(deadline, waiting).await;
        if let Ok((status, read)) = ended {
            group.0 = None;
            if !read {
                let _ = timeout(DRAIN, reading).await;
            }
            Some(status)
        } else {
            None
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some(status) = status else {
        group.kill();
        if timeout(REAP, child.wait()).await.is_ok() {
            group.0 = None;
        }
        let said = quote(&text(&stderr), &text(&stdout));
        return Err(ProgramError::Timeout {
            program,
            timeout: invocation.timeout,
            said,
        });
    };
    let status = status.map_err(|source| ProgramError::Start {
        program,
        path: executable.to_owned(),
        source,
    })?;
    use std::os::unix::process::ExitStatusExt;
    let exit = match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    };
    // Not its arguments: the log is no place for them.
    tracing::trace!(%program, took = ?begun.elapsed(), "program");
    Ok(Finished {
        program,
        exit,
        stdout: text(&stdout),
        stderr: text(&stderr),
    })
}

fn spawn(
    executable: &Path,
    before: &[String],
    path: &str,
    args: &[String],
    network: &NetNamespace,
) -> std::io::Result<tokio::process::Child> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the driver's one place that starts programs"
    )]
    let mut command = tokio::process::Command::new(executable);
    network.enter_in_child(command.as_std_mut());
    command
        .args(before)
        .args(args)
        .env_clear()
        .env("PATH", path)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Reads to the end, keeping the first [`OUTPUT_LIMIT`] bytes: a full pipe would stop the program.
async fn read_bounded(source: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut source) = source else { return };
    let mut buffer = [0; 4096];
    while let Ok(n) = source.read(&mut buffer).await
        && n > 0
    {
        let room = OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Program;
    use super::*;

    /// `/bin/sh` stands in for the programs; the plugin itself never uses a shell.
    async fn shell(script: &str, limit: Duration) -> Result<Finished, ProgramError> {
        let invocation = Invocation::new(Program::Blkid, ["-c", script], limit);
        run(
            Path::new("/bin/sh"),
            &[],
            "/usr/bin:/bin",
            &invocation,
            &NetNamespace::default(),
        )
        .await
    }

    fn alive(pid: i32) -> bool {
        // A killed child that nobody reaped yet is a zombie: dead for us.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    async fn wait_dead(pid: i32) {
        let until = Instant::now() + Duration::from_secs(10);
        while alive(pid) {
            assert!(Instant::now() < until, "process {pid} still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn output_is_kept_up_to_the_limit_and_the_rest_is_drained() {
        let out = shell(
            "head -c 300000 /dev/zero | tr '\\0' x; echo no >&2; exit 7",
            Duration::from_secs(30),
        )
        .await;
        let out = out.expect("ran");
        assert_eq!(
            (out.exit, out.stdout.len(), out.stderr.as_str()),
            (Exit::Code(7), OUTPUT_LIMIT, "no\n")
        );
        let killed = shell("kill -9 $$", Duration::from_secs(30)).await.expect("ran");
        assert_eq!(killed.exit, Exit::Signal(9));
    }

    #[tokio::test]
    async fn a_slow_program_is_killed_with_its_children_and_what_it_said_is_kept() {
        let begun = Instant::now();
        let error = shell("sleep 600 & echo $! >&2; wait", Duration::from_millis(700))
            .await
            .expect_err("too slow");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let ProgramError::Timeout { said, .. } = &error else {
            panic!("{error}")
        };
        wait_dead(said.parse().expect("the child's process id")).await;
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_whole_group() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("pid");
        let script = format!(
            "sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let task = tokio::spawn(async move { shell(&script, Duration::from_secs(600)).await });
        let until = Instant::now() + Duration::from_secs(20);
        let pid = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break text.trim().parse().expect("a process id");
            }
            assert!(Instant::now() < until, "the program did not start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        task.abort();
        wait_dead(pid).await;
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_output_open_does_not_hold_its_starter_up() {
        let begun = Instant::now();
        let out = shell("setsid sleep 600 & echo $!", Duration::from_secs(60))
            .await
            .expect("ran");
        assert!(out.success());
        assert!(begun.elapsed() < Duration::from_secs(20));
        let pid: i32 = out.stdout.trim().parse().expect("a process id");
        assert!(alive(pid), "a program's daemon is not ours to kill");
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        wait_dead(pid).await;
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_executed_is_named() {
        let invocation = Invocation::new(Program::Blkid, ["x"], Duration::from_secs(1));
        let error = run(
            Path::new("/nonexistent/blkid"),
            &[],
            "/bin",
            &invocation,
            &NetNamespace::default(),
        )
        .await
        .expect_err("no such file");
        assert_eq!(error.to_string(), "cannot start /nonexistent/blkid");
    }
}
