//! kubectl: what a user of the cluster does and sees.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{programs, wait};

/// For one command.
const LIMIT: Duration = Duration::from_secs(120);

/// kubectl with one user's access.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// This program with this access.
    #[must_use]
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// The file with the access.
    #[must_use]
    pub fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// Runs a command that must succeed; its standard output without the last line end.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, &[]).await
    }

    /// [`Kubectl::run`] with standard input.
    pub async fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Result<String> {
        self.succeed(arguments, stdin, LIMIT).await
    }

    async fn succeed(&self, arguments: &[&str], stdin: &[u8], limit: Duration) -> Result<String> {
        let done = self.finish(arguments, stdin, limit).await?;
        if done.exit != 0 {
            bail!(
                "kubectl {}: exit {}: {}",
                arguments.join(" "),
                done.exit,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }

    /// Runs a command; any end is an answer.
    async fn finish(&self, arguments: &[&str], stdin: &[u8], limit: Duration) -> Result<programs::Finished> {
        let mut argv = vec![self.program.clone().into_os_string(), "--kubeconfig".into()];
        argv.push(self.kubeconfig.clone().into_os_string());
        argv.extend(arguments.iter().map(Into::into));
        programs::run(&argv, &HashMap::new(), stdin, limit)
            .await
            .with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// `kubectl apply` of objects in YAML or JSON. Only the API server looks at them: for kubectl's own look it would have to make its
    /// whole OpenAPI document, for which an emulated processor may need longer than the half minute that kubectl waits.
    pub async fn apply(&self, objects: &str) -> Result<()> {
        self.run_with(&["apply", "--validate=false", "-f", "-"], objects.as_bytes())
            .await
            .map(drop)
    }

    /// The text with which the API server refuses these objects.
    pub async fn refused(&self, objects: &str) -> Result<String> {
        let done = self
            .finish(&["apply", "-f", "-"], objects.as_bytes(), LIMIT)
            .await?;
        if done.exit == 0 {
            bail!("it was accepted: {objects}");
        }
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// Objects as JSON: `get <arguments> -o json`.
    pub async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get"];
        all.extend(arguments);
        all.extend(["-o", "json"]);
        let text = self.run(&all).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}", all.join(" ")))
    }

    /// The items of a list.
    pub async fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.get(arguments).await?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// A field by JSONPath; empty when it is not there.
    pub async fn field(&self, what: &[&str], path: &str) -> Result<String> {
        let output = format!("jsonpath={{{path}}}");
        let mut all = vec!["get"];
        all.extend(what);
        all.extend(["-o", &output]);
        self.run(&all).await
    }

    /// Waits until a field has a value.
    pub async fn until(&self, what: &[&str], path: &str, value: &str, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        match self
            .wait(what, &format!("jsonpath={{{path}}}={value}"), limit)
            .await
        {
            Ok(()) => Ok(start.elapsed()),
            Err(error) => {
                let describe: Vec<&str> = std::iter::once("describe").chain(what.iter().copied()).collect();
                let told = self.run(&describe).await.unwrap_or_default();
                Err(error).context(told)
            }
        }
    }

    /// `kubectl wait` for objects that are there: it watches, nothing is asked again and again.
    pub async fn wait(&self, what: &[&str], condition: &str, limit: Duration) -> Result<()> {
        let (condition, timeout) = (
            format!("--for={condition}"),
            format!("--timeout={}s", limit.as_secs()),
        );
        let mut all = vec!["wait", condition.as_str(), timeout.as_str()];
        all.extend(what);
        self.succeed(&all, &[], limit + LIMIT).await.map(drop)
    }

    /// Waits until an object is gone.
    pub async fn gone(&self, what: &[&str], limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.wait(what, "delete", limit).await?;
        Ok(start.elapsed())
    }

    /// Deletes objects and waits until they are gone.
    pub async fn delete(&self, what: &[&str]) -> Result<()> {
        let mut all = vec!["delete", "--ignore-not-found", "--wait=true", "--timeout=110s"];
        all.extend(what);
        self.run(&all).await.map(drop)
    }

    /// Runs a program in a pod; its standard output.
    pub async fn exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<String> {
        let mut all = vec!["-n", namespace, "exec", pod, "--"];
        all.extend(argv);
        self.run(&all).await
    }

    /// Messages of the events about an object, oldest first.
    pub async fn events(&self, namespace: &str, kind: &str, name: &str) -> Result<Vec<String>> {
        let selector = format!("--field-selector=involvedObject.kind={kind},involvedObject.name={name}");
        let items = self.list(&["-n", namespace, "events", &selector]).await?;
        Ok(items
            .iter()
            .map(|event| {
                format!(
                    "{} {} {}",
                    event["type"].as_str().unwrap_or_default(),
                    event["reason"].as_str().unwrap_or_default(),
                    event["message"].as_str().unwrap_or_default()
                )
            })
            .collect())
    }

    /// Waits for an Event about an object of the namespace `default` that holds all of these words; the Event.
    pub async fn told(&self, kind: &str, name: &str, words: &[&str], limit: Duration) -> Result<String> {
        let mut found = String::new();
        wait::until(&format!("the Event of {kind} {name}"), limit, async || {
            let events = self.events("default", kind, name).await?;
            match events.iter().find(|e| words.iter().all(|word| e.contains(word))) {
                Some(event) => {
                    found.clone_from(event);
                    Ok(true)
                }
                None => bail!("none of {events:?} holds {words:?}"),
            }
        })
        .await?;
        Ok(found)
    }
}
