//! Docker: the two networks that are the fabrics, the container that is the array, and images.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    settings::{ARRAY, FABRICS, Fabric, ISCSI_PORT, KIND_NETWORK, Settings},
    target,
    tool::{self, SHORT},
};
use crate::wait;

/// Base images by the C library that they have: programs run with that one or a newer one.
const BASES: [((u32, u32), &str); 2] = [
    ((2, 36), "docker.io/library/debian:bookworm-slim"),
    ((2, 41), "docker.io/library/debian:trixie-slim"),
];
/// Seconds that the array has to clean the kernel when it is stopped.
const STOP_SECONDS: &str = "60";

/// The array as its users know it.
#[derive(Debug, Clone)]
pub struct Access {
    /// The gateway's address on kind's network.
    pub address: String,
    /// Its password.
    pub password: String,
    /// SHA-256 of its certificate, in hex.
    pub fingerprint: String,
}

/// Runs docker.
pub async fn docker(arguments: &[&str]) -> Result<String> {
    within(arguments, SHORT).await
}

async fn within(arguments: &[&str], limit: Duration) -> Result<String> {
    let argv: Vec<&str> = std::iter::once("docker")
        .chain(arguments.iter().copied())
        .collect();
    tool::run(&argv, limit).await
}

/// The image of the array.
#[must_use]
pub fn array_image(version: &str) -> String {
    format!("{ARRAY}:{version}")
}

/// Makes the fabrics' networks and the container, and returns once it is healthy.
pub async fn start_array(settings: &Settings, version: &str) -> Result<()> {
    for fabric in FABRICS {
        // Internal: nothing of it is routed further; the host reaches it all the same.
        let subnet = format!("--subnet={}", fabric.subnet);
        docker(&[
            "network",
            "create",
            "--driver=bridge",
            "--internal",
            &subnet,
            fabric.network,
        ])
        .await
        .with_context(|| {
            format!(
                "the network of a fabric; is {} in use on this host?",
                fabric.subnet
            )
        })?;
    }
    let [a, b] = FABRICS;
    let portals = format!("PORTALS={}:{ISCSI_PORT} {}:{ISCSI_PORT}", a.portal, b.portal);
    docker(&[
        "create",
        "--name",
        ARRAY,
        "--hostname",
        ARRAY,
        // Modules, loop devices, mounts.
        "--privileged",
        "--volume=/dev:/dev",
        "--volume=/sys/kernel/config:/sys/kernel/config",
        "--volume=/lib/modules:/lib/modules:ro",
        "--env",
        &portals,
        "--stop-timeout",
        STOP_SECONDS,
        "--network",
        a.network,
        "--ip",
        a.portal,
        &array_image(version),
    ])
    .await?;
    connect(b).await?;
    docker(&["start", ARRAY]).await?;
    healthy(settings).await
}

/// Waits until Docker says that the array is healthy.
async fn healthy(settings: &Settings) -> Result<()> {
    let waited = wait::until(
        "the array's container is healthy",
        settings.limit(60),
        async || {
            let format = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}";
            let state = docker(&["inspect", "--format", format, ARRAY]).await?;
            ensure!(state == "running healthy", "it is {state}");
            Ok(true)
        },
    )
    .await;
    if let Err(error) = waited {
        let log = said(&["logs", "--tail", "20", ARRAY]).await;
        return Err(error).context(log);
    }
    Ok(())
}

/// Both outputs of docker, for people.
async fn said(arguments: &[&str]) -> String {
    let argv: Vec<&str> = std::iter::once("docker")
        .chain(arguments.iter().copied())
        .collect();
    match tool::finish(&argv, SHORT).await {
        Ok(done) => tool::said(&done),
        Err(error) => format!("{error:#}"),
    }
}

/// Connects the array to kind's network, where the controller reaches its gateway.
pub async fn join_kind() -> Result<Access> {
    docker(&["network", "connect", KIND_NETWORK, ARRAY]).await?;
    let format = format!("{{{{(index .NetworkSettings.Networks \"{KIND_NETWORK}\").IPAddress}}}}");
    let address = docker(&["inspect", "--format", &format, ARRAY]).await?;
    ensure!(
        !address.is_empty(),
        "{ARRAY} has no address on the network {KIND_NETWORK}"
    );
    let read = async |file: &Path| docker(&["exec", ARRAY, "cat", &file.to_string_lossy()]).await;
    Ok(Access {
        address,
        password: read(&target::password_file()).await?,
        fingerprint: read(&target::fingerprint_file()).await?,
    })
}

/// Takes the array's cable out of a fabric.
pub async fn cut(fabric: Fabric) -> Result<()> {
    docker(&["network", "disconnect", fabric.network, ARRAY])
        .await
        .map(drop)
}

/// Puts the array's cable into a fabric, with the address that it had.
pub async fn connect(fabric: Fabric) -> Result<()> {
    docker(&["network", "connect", "--ip", fabric.portal, fabric.network, ARRAY])
        .await
        .map(drop)
}

/// Stops the array, which removes its target from the kernel, and then the container with its volume, and the networks. Success when
/// they are not there.
pub async fn remove_array(settings: &Settings) -> Result<()> {
    if exists("container", ARRAY).await? {
        within(&["stop", ARRAY], settings.limit(120)).await?;
        docker(&["rm", "--force", "--volumes", ARRAY]).await?;
    }
    for fabric in FABRICS {
        if exists("network", fabric.network).await? {
            docker(&["network", "rm", fabric.network]).await?;
        }
    }
    Ok(())
}

/// What Docker still has of the array.
pub async fn left() -> Result<Vec<String>> {
    let mut left = Vec::new();
    let names = [("container", ARRAY)]
        .into_iter()
        .chain(FABRICS.map(|fabric| ("network", fabric.network)));
    for (kind, name) in names {
        if exists(kind, name).await? {
            left.push(format!("{kind} {name}"));
        }
    }
    Ok(left)
}

/// Whether an object of this kind has exactly this name.
pub async fn exists(kind: &str, name: &str) -> Result<bool> {
    let argv = ["docker", kind, "inspect", "--format", "-", name];
    let done = tool::finish(&argv, SHORT).await?;
    match done.exit {
        0 => Ok(true),
        _ if not_found(&tool::said(&done)) => Ok(false),
        exit => bail!("docker {kind} inspect {name}: exit {exit}: {}", tool::said(&done)),
    }
}

/// How engines of several versions say it.
fn not_found(said: &str) -> bool {
    let said = said.to_lowercase();
    said.contains("no such") || said.contains("not found")
}

/// Images that the walk needs, with the Dockerfile and the stage that makes each.
fn images(version: &str) -> [(String, &'static str, Option<&'static str>); 4] {
    [
        (
            product("storagelink-csi-controller", version),
            "Dockerfile",
            Some("controller"),
        ),
        (
            product("storagelink-csi-node", version),
            "Dockerfile",
            Some("node"),
        ),
        (
            crate::kube::images::WRITER.to_owned(),
            "e2e/kind/writer/Dockerfile",
            None,
        ),
        (array_image(version), "e2e/kind/target/Dockerfile", None),
    ]
}

fn product(name: &str, version: &str) -> String {
    format!("ghcr.io/storagelink/{name}:{version}")
}

/// Those of them that pods run.
#[must_use]
pub fn pod_images(version: &str) -> Vec<String> {
    let of_pods = images(version).into_iter().map(|(image, ..)| image);
    of_pods.filter(|image| *image != array_image(version)).collect()
}

/// Builds the images from the programs of the release build, or looks whether they are there.
pub async fn provide_images(settings: &Settings, version: &str) -> Result<()> {
    if settings.images_present {
        let mut missing = Vec::new();
        for (image, ..) in images(version) {
            let in_nodes = settings.images_loaded && image != array_image(version);
            if !in_nodes && !exists("image", &image).await? {
                missing.push(image);
            }
        }
        ensure!(
            missing.is_empty(),
            "E2E_KIND_IMAGES=present, but the engine has no {}",
            missing.join(", ")
        );
        return Ok(());
    }
    let base = match &settings.base {
        Some(base) => base.clone(),
        None => base_for(&tool::run(&["getconf", "GNU_LIBC_VERSION"], SHORT).await?)?.to_owned(),
    };
    let (base, checkout) = (format!("BASE={base}"), settings.checkout.to_string_lossy());
    for (image, file, stage) in images(version) {
        let file = settings.checkout.join(file);
        let file = file.to_string_lossy();
        let mut arguments = vec!["build", "--build-arg", &base, "--file", &file, "--tag", &image];
        arguments.extend(stage.iter().flat_map(|stage| ["--target", stage]));
        arguments.push(&checkout);
        within(&arguments, settings.limit(900)).await?;
    }
    Ok(())
}

/// The oldest base whose C library is not older than the one that the programs were linked with here.
fn base_for(library: &str) -> Result<&'static str> {
    let version = library
        .rsplit(' ')
        .next()
        .and_then(|version| version.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .with_context(|| format!("{library:?} is no version of glibc"))?;
    let found = BASES.iter().find(|(has, _)| version <= *has);
    let (_, base) = found.with_context(|| {
        format!("programs built with {library} run on no base image known here: name one with E2E_KIND_BASE")
    })?;
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::{base_for, not_found, pod_images};

    #[test]
    fn the_base_is_never_older_than_the_build() {
        assert!(base_for("glibc 2.36").unwrap().contains("bookworm"));
        assert!(base_for("glibc 2.31").unwrap().contains("bookworm"));
        assert!(base_for("glibc 2.39").unwrap().contains("trixie"));
        assert!(
            base_for("glibc 2.99")
                .unwrap_err()
                .to_string()
                .contains("E2E_KIND_BASE")
        );
        assert!(base_for("musl").is_err());
    }

    #[test]
    fn an_engine_that_is_down_is_not_an_object_that_is_gone() {
        assert!(not_found("Error: No such container: storagelink-e2e-target"));
        assert!(not_found(
            "Error response from daemon: network storagelink-a not found"
        ));
        assert!(!not_found(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock"
        ));
    }

    #[test]
    fn the_array_is_no_image_of_pods() {
        let images = pod_images("1.2.3");
        assert_eq!(images.len(), 3);
        assert!(images.contains(&"ghcr.io/storagelink/storagelink-csi-node:1.2.3".to_owned()));
        assert!(!images.iter().any(|image| image.contains("target")));
    }
}
