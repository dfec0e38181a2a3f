//! The only place of this crate that runs programs, on the machine and inside the guest.
//!
//! Never through a shell. A program gets an argument vector, a time limit and no inherited input; it dies with the caller.

#![allow(clippy::disallowed_methods, reason = "this is the one module that may")]

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{self, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{io::AsyncWriteExt as _, process::Command};

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code; 128 + the signal's number for a program that died of a signal.
    pub exit: i32,
    /// All it wrote to standard output.
    pub stdout: Vec<u8>,
    /// All it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// The exit code in the form of [`Finished::exit`].
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// Runs `argv` to its end. On overrun the whole process group is killed.
///
/// # Errors
/// The program cannot be started or overran `limit` (then the error is [`io::ErrorKind::TimedOut`]); a non-zero exit is
/// no error here.
pub async fn run(
    argv: &[impl AsRef<OsStr>],
    env: &HashMap<String, String>,
    stdin: &[u8],
    limit: Duration,
) -> io::Result<Finished> {
    let [program, args @ ..] = argv else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "empty argument vector",
        ));
    };
    let mut child = Command::new(program)
        .args(args)
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = child.id();
    let mut input = child.stdin.take().expect("stdin is piped");
    let work = async {
        let feed = async {
            // A program that does not read its input closes the pipe: not our error.
            let _ = input.write_all(stdin).await;
            drop(input);
        };
        let (_, output) = tokio::join!(feed, child.wait_with_output());
        output
    };
    match tokio::time::timeout(limit, work).await {
        Ok(output) => output.map(|output| Finished {
            exit: exit_code(output.status),
            stdout: output.stdout,
            stderr: output.stderr,
        }),
        Err(_) => {
            if let Some(group) = group {
                let group = nix::unistd::Pid::from_raw(group.cast_signed());
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            }
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("still running after {limit:?}"),
            ))
        }
    }
}

/// Runs `argv` on the machine and returns its standard output; a non-zero exit is an error with both outputs in it.
pub async fn output(argv: &[&str]) -> Result<String> {
    let done = run(argv, &HashMap::new(), &[], Duration::from_secs(60))
        .await
        .with_context(|| format!("run {}", argv.join(" ")))?;
    if done.exit != 0 {
        bail!(
            "{}: exit {}: {}{}",
            argv.join(" "),
            done.exit,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Like [`output`] before there is a runtime, with standard input and raw standard output. For programs known to end.
pub fn output_blocking(argv: &[&str], directory: &std::path::Path, stdin: &[u8]) -> Result<Vec<u8>> {
    let [program, args @ ..] = argv else {
        bail!("empty argument vector")
    };
    let mut child = std::process::Command::new(program)
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut input = child.stdin.take().expect("stdin is piped");
    let done = std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = input.write_all(stdin);
        });
        child.wait_with_output()
    })
    .with_context(|| format!("wait for {program}"))?;
    if !done.status.success() {
        bail!(
            "{}: {}: {}",
            argv.join(" "),
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(done.stdout)
}

/// A program in the background with both outputs in `log`; killed when dropped.
///
/// `new_group` gives it a process group of its own.
pub fn background(
    argv: &[impl AsRef<OsStr>],
    env: &HashMap<String, String>,
    log: std::fs::File,
    new_group: bool,
) -> io::Result<tokio::process::Child> {
    let [program, args @ ..] = argv else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "empty argument vector",
        ));
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(env)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    if new_group {
        command.process_group(0);
    }
    command.spawn()
}

/// Starts this very executable again with the same arguments plus `env`; its standard input is a pipe whose other end the
/// caller holds.
pub fn again(env: &[(&str, &str)]) -> io::Result<std::process::Child> {
    std::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .spawn()
}

/// Starts this executable with one argument, in the same environment, and does not wait for it.
pub fn myself(argument: &str) -> io::Result<std::process::Child> {
    std::process::Command::new(std::env::current_exe()?)
        .arg(argument)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
}
