//! Offers a unix socket of the guest as a TCP port on the management network.

use std::{io, net::Ipv4Addr, path::PathBuf, time::Duration};

use tokio::{
    net::{TcpListener, UnixStream},
    time::{Instant, MissedTickBehavior},
};

/// Waits until `socket` accepts, then forwards a fresh port of `address` to it for the guest's life.
pub async fn forward(address: Ipv4Addr, socket: PathBuf, limit: Duration) -> io::Result<u16> {
    let end = Instant::now() + limit;
    // Nothing tells that a socket started to listen, short of trying.
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match UnixStream::connect(&socket).await {
            Ok(_) => break,
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => {}
        }
    }
    let listener = TcpListener::bind((address, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            let _ = outside.set_nodelay(true);
            let socket = socket.clone();
            tokio::spawn(async move {
                // A plugin that is down closes the connection: the harness sees a transport error, as a sidecar would.
                if let Ok(mut inside) = UnixStream::connect(&socket).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
    Ok(port)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpStream, UnixListener},
    };

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_missing_socket_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let missing = super::forward(Ipv4Addr::LOCALHOST, path.clone(), Duration::from_millis(50)).await;
        assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);

        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut byte = [0];
                if stream.read_exact(&mut byte).await.is_ok() {
                    stream.write_all(&[byte[0] + 1]).await.unwrap();
                }
            }
        });
        let port = super::forward(Ipv4Addr::LOCALHOST, path, Duration::from_secs(5))
            .await
            .unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(&[41]).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [42]);
    }
}
