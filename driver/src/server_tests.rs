//! The socket file and the routing.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn endpoints() {
    for text in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
        assert_eq!(socket_path(text).unwrap(), Path::new("/run/csi.sock"));
    }
    for text in [
        "",
        "unix://",
        "unix://run/csi.sock",
        "tcp://127.0.0.1:1",
        "csi.sock",
        "unix:///run/",
    ] {
        assert!(
            matches!(socket_path(text), Err(ServeError::Endpoint(_))),
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn the_socket_is_private_and_a_stale_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    let first = listen_private(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    drop(first);
    assert!(path.exists(), "a listener that goes away leaves its file behind");
    let _second = listen_private(&path).unwrap();
    tokio::net::UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn the_sockets_directory_is_made_but_not_the_one_above() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = listen_private(&dir.path().join("csi.storagelink.io/csi.sock")).unwrap();
    let wrong = dir.path().join("no/such/csi.sock");
    assert!(matches!(listen_private(&wrong), Err(ServeError::Socket { .. })));
}

#[tokio::test]
async fn what_is_not_a_socket_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(listen_private(&path), Err(ServeError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(listen_private(&long), Err(ServeError::Socket { .. })));
}

#[tokio::test]
async fn stopping_removes_the_socket_but_not_that_of_a_successor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    let endpoint = format!("unix://{}", path.display());
    serve(&endpoint, Services::new(), std::future::ready(()))
        .await
        .unwrap();
    assert!(!path.exists());

    let successor = std::cell::OnceCell::new();
    let stop = async {
        let _ = successor.set(listen_private(&path).unwrap());
    };
    serve(&endpoint, Services::new(), stop).await.unwrap();
    assert!(path.exists());
}
