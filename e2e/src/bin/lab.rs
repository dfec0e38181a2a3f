//! The lab's command line: `lab check`, `lab suite <name>|all`, `lab kube <name>|all`, `lab kind <disk>`, `lab demo`, `lab bench <name>`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use storagelink_e2e::{
    artifacts::{self, Artifacts},
    bench::{self, Amount, Bench},
    check, demo, isolate, kind_lab,
    kube::suites::{self as kube, KubeSuite},
    lab::Places,
    roles::multipathd,
    suites::{self, Suite},
};

#[derive(Parser)]
#[command(
    version,
    about = "Boots real kernels, two fabrics and an array, and runs the suites on them"
)]
struct Arguments {
    /// Kernel to boot: a package, or a version such as 6.12 [default: what linux-image-amd64 depends on]
    #[arg(long, global = true)]
    kernel: Option<String>,
    /// Directory of the programs under test [default: this program's]
    #[arg(long, global = true)]
    programs: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure beside the usual way; writes docs/benchmarks.md
    Bench {
        /// What
        #[arg(value_enum)]
        name: Bench,
        #[command(flatten)]
        amount: Amount,
    },
    /// Boot two guests and prove that fabrics can be cut and healed
    Check,
    /// Run the main job with its output to watch
    Demo,
    /// Run the walk of `make e2e-kind` in a guest, with nothing pulled
    Kind {
        /// Disk of the engine's data, as hack/build-kind-disk.sh prints it
        disk: std::path::PathBuf,
        /// A command to run in the guest in the walk's place
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run suites of a Kubernetes cluster on the lab's guests
    Kube {
        /// Which ones
        #[arg(value_enum, required = true)]
        names: Vec<KubeSuite>,
        /// Directory of the product's images [default: images/ of the target directory]
        #[arg(long)]
        images: Option<std::path::PathBuf>,
    },
    /// Run suites; one line a step, then `N passed, N failed`
    Suite {
        /// Which one
        #[arg(value_enum)]
        name: Suite,
    },
}

#[allow(clippy::print_stderr, reason = "a command-line program")]
fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Some(state) = isolate::handed_over() else {
        let cache = artifacts::cache_directory();
        let mut artifacts = artifacts::prepare(&cache, arguments.kernel.as_deref())?;
        let peer = match arguments.command {
            Command::Bench { .. } => true,
            Command::Suite { name } => name.needs_multipathd(),
            _ => false,
        };
        if peer {
            artifacts.multipath_tools = Some(multipathd::fetch(&cache)?);
        }
        return isolate::enter(&serde_json::to_string(&artifacts).context("write the lab's state")?);
    };
    isolate::settle()?;
    let artifacts: Artifacts = serde_json::from_str(&state).context("read the lab's state")?;
    let mut places = Places::beside_this_program()?;
    if let Some(programs) = &arguments.programs {
        places.programs = programs
            .canonicalize()
            .with_context(|| format!("--programs {}", programs.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let passed = runtime.block_on(async {
        match &arguments.command {
            Command::Bench { name, amount } => bench::run(*name, amount, &artifacts, &places).await,
            Command::Check => check::run(&artifacts, &places).await,
            Command::Demo => demo::run(&artifacts, &places).await,
            Command::Kind { disk, command } => kind_lab::run(disk, command, &artifacts, &places).await,
            Command::Kube { names, images } => {
                let images = images
                    .clone()
                    .unwrap_or_else(|| places.results.with_file_name("images"));
                kube::run(names, &images, &artifacts, &places).await
            }
            Command::Suite { name } => suites::run(*name, &artifacts, &places).await,
        }
    })?;
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
