//! `mpathutil`: shows the multipath maps of this host, as the kernel has them.
//!
//! Works with the node plugin down and changes nothing. `list` names the maps, `status` shows their paths.

mod show;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use storagelink_multipath::{Host, engine};

/// Shows the multipath maps of storagelink-csi on this host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One line for each map: its name and the identity of its volume.
    List(Output),
    /// The maps with their path groups and paths.
    Status(Output),
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
    /// For programs: an array of maps.
    Json,
}

fn run(arguments: &Arguments) -> Result<String, String> {
    // Nothing here makes a device node.
    let host = Host::kernel("/run/storagelink-csi/nodes");
    let maps = match engine::maps(&host) {
        Ok(maps) => maps,
        // No device-mapper in this kernel: no maps.
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => vec![],
        Err(error) => return Err(format!("{error}: {}", error.source)),
    };
    let (format, text): (Format, fn(&[storagelink_multipath::Map]) -> String) = match &arguments.command {
        Command::List(output) => (output.output, show::list),
        Command::Status(output) => (output.output, show::status),
    };
    match format {
        Format::Text => Ok(text(&maps)),
        Format::Json => serde_json::to_string_pretty(&maps)
            .map(|json| json + "\n")
            .map_err(|error| error.to_string()),
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
