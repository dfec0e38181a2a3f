//! The QEMU monitor of one guest, in its JSON form (QEMU docs/interop/qmp-spec.rst): freeze, carrier.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

/// Sends one command on a connection of its own and returns its answer.
pub async fn command(socket: &Path, name: &str, arguments: Value) -> Result<Value> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("connect to the monitor {}", socket.display()))?;
    let mut stream = BufReader::new(stream);
    let greeting = line(&mut stream).await?;
    if greeting.get("QMP").is_none() {
        bail!("the monitor does not greet: {greeting}");
    }
    execute(&mut stream, "qmp_capabilities", &json!({})).await?;
    execute(&mut stream, name, &arguments).await
}

async fn execute(stream: &mut BufReader<UnixStream>, name: &str, arguments: &Value) -> Result<Value> {
    let request = format!("{}\n", json!({"execute": name, "arguments": arguments}));
    stream
        .write_all(request.as_bytes())
        .await
        .with_context(|| format!("send {name}"))?;
    loop {
        let mut answer = line(stream).await?;
        if let Some(error) = answer.get("error") {
            bail!("{name}: {error}");
        }
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        // Anything else is an event.
    }
}

async fn line(stream: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut text = String::new();
    let read = stream
        .read_line(&mut text)
        .await
        .context("read from the monitor")?;
    if read == 0 {
        bail!("the monitor closed the connection");
    }
    serde_json::from_str(&text).with_context(|| format!("the monitor wrote {text:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::UnixListener,
    };

    #[tokio::test]
    async fn events_are_skipped_and_errors_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut lines = BufReader::new(stream);
            let mut text = String::new();
            lines.read_line(&mut text).await.unwrap();
            lines
                .write_all(b"{\"return\": {}}\n{\"event\": \"STOP\"}\n")
                .await
                .unwrap();
            lines.read_line(&mut text).await.unwrap();
            lines
                .write_all(b"{\"error\": {\"desc\": \"no such device\"}}\n")
                .await
                .unwrap();
            text
        });
        let error = super::command(&path, "set_link", json!({"name": "x", "up": false}))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no such device"), "{error}");
        let sent = server.await.unwrap();
        assert!(
            sent.contains("qmp_capabilities") && sent.contains("\"up\":false"),
            "{sent}"
        );
    }
}
