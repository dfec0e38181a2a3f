//! Runs inside a guest: `lab-agent init` as process 1, `lab-agent serve` below it.

use std::process::ExitCode;

#[allow(clippy::print_stderr, reason = "the guest's console")]
fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("init") => storagelink_e2e::agent::init::run(),
        Some("serve") => serve(),
        _ => Err(anyhow::anyhow!("usage: lab-agent init|serve")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(storagelink_e2e::agent::server::serve())
}
