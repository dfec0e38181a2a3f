//! Whether anybody listens at a portal, asked before open-iscsi is.
//!
//! iscsid looks at a new connection after 1 ms and then again after a whole second, and it reports a dead portal, a
//! wrong target name and a slow array alike, as a time-out, after 6 s. A connection of our own first finds a dead portal
//! quickly and by its cause, without leaving anything in open-iscsi's database, and has the address resolved by the time
//! that iscsid connects.

use std::{future::Future, io, net::SocketAddr, pin::Pin, time::Duration};

use storagelink_multipath::host::kernel::NetNamespace;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// The answer of [`Probe::connect`].
pub type Probing<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

/// Something that can tell whether a portal accepts connections: the network, or a simulation of it.
pub trait Probe: Send + Sync {
    /// Succeeds when a TCP connection to `address` comes about within `limit`. It is closed again at once.
    fn connect(&self, address: SocketAddr, limit: Duration) -> Probing<'_>;
}

/// The network that iscsid sees.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// The network namespace in which it runs.
    pub namespace: NetNamespace,
}

impl Network {
    async fn open(&self, address: SocketAddr) -> io::Result<TcpStream> {
        if self.namespace.is_own() {
            return TcpStream::connect(address).await;
        }
        let namespace = self.namespace.clone();
        let made = tokio::task::spawn_blocking(move || {
            namespace.run(|| match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            })
        });
        made.await.map_err(io::Error::other)???.connect(address).await
    }
}

impl Probe for Network {
    fn connect(&self, address: SocketAddr, limit: Duration) -> Probing<'_> {
        Box::pin(async move {
            match timeout(limit, self.open(address)).await {
                Ok(connected) => connected.map(drop),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} ms", limit.as_millis()),
                )),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_found_and_a_closed_port_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        Network::default()
            .connect(address, Duration::from_secs(20))
            .await
            .expect("listens");
        drop(listener);
        let error = Network::default()
            .connect(address, Duration::from_secs(20))
            .await
            .expect_err("closed");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
