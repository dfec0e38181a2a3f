//! `mpathutil`: shows the multipath maps of this host, as the kernel has them.
//!
//! Works with the node plugin down and changes nothing (where /dev is not the kernel's it makes the node that device-mapper is asked through). `list` names the volumes, `status` shows their paths, `explain` adds what the
//! node plugin has told of one volume: why its paths are as they are, and since when.

mod explain;
mod show;
mod time;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use storagelink_multipath::{Host, engine, names::Names, told};

/// Shows the multipath maps of storagelink-csi on this host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The node plugin's state directory: what it tells of its volumes is in there.
    #[arg(long, global = true, default_value = "/var/lib/storagelink-csi")]
    state_dir: PathBuf,
    /// Show the volumes of this node, where several nodes share the kernel (--shared-kernel of the node plugin). Without it, those of a node that
    /// has the kernel to itself.
    #[arg(long, global = true, env = "MPATHUTIL_NODE")]
    node: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One line for each volume: its name and its identity.
    List(Output),
    /// The maps with their path groups and paths.
    Status(Output),
    /// One volume, down to each path: why it is as it is, and since when.
    Explain {
        /// The CSI volume id, its UUID part, the name of the map, or the identity (WWID).
        volume: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
struct Output {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs: an array of volumes; one object of `explain`.
    Json,
}

fn run(arguments: &Arguments) -> Result<String, String> {
    // Nothing here makes a device node.
    let mut host = Host::kernel("/run/storagelink-csi/nodes");
    if let Some(node) = arguments.node.as_deref().filter(|node| !node.is_empty()) {
        host.names = Names::of_node(node).map_err(|error| format!("--node: {error}"))?;
    }
    let mut maps = match engine::maps(&host) {
        Ok(maps) => maps,
        // No device-mapper in this kernel: no maps.
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => vec![],
        Err(error) => return Err(format!("{error}: {}", error.source)),
    };
    engine::count_requests(&host, &mut maps);
    let told = told::read(&arguments.state_dir);
    let json = |value: serde_json::Result<String>| match value {
        Ok(json) => Ok(json + "\n"),
        Err(error) => Err(error.to_string()),
    };
    match &arguments.command {
        Command::List(output) | Command::Status(output) if matches!(output.output, Format::Json) => json(
            serde_json::to_string_pretty(&show::all(&host.names, &maps, &told)),
        ),
        Command::List(_) => Ok(show::list(&host.names, &maps, &told)),
        Command::Status(_) => Ok(show::status(&host.names, &maps, &told)),
        Command::Explain { volume, output } => {
            let found = explain::find(&host, &maps, &told, volume)?;
            match output.output {
                Format::Text => Ok(explain::text(&found, time::now_ms())),
                Format::Json => json(serde_json::to_string_pretty(&found)),
            }
        }
    }
}

fn main() -> ExitCode {
    let result = run(&Arguments::parse());
    match result {
        // A reader that went away (`| head`) is no error.
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mpathutil: {error}");
            ExitCode::FAILURE
        }
    }
}
