//! The gRPC messages and services of storagelink-csi: CSI 1.12, the StorageLink gateway protocol, the kubelet's registration of plugins.
//!
//! Owns the .proto files and what is generated from them. Holds no behaviour, and never prints a secret: the Debug of every message
//! with a field marked `csi_secret` is written by the build script.

/// The Container Storage Interface.
pub mod csi {
    /// CSI 1.x; the file describes 1.12.
    #[allow(missing_docs, clippy::all, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
        include!(concat!(env!("OUT_DIR"), "/csi_secret_debug.rs"));
    }
}

/// The gateway protocol.
pub mod storagelink {
    /// Version 1.
    #[allow(missing_docs, clippy::all, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("storagelink.v1");
    }
}

/// How a plugin registers with the kubelet.
pub mod pluginregistration {
    /// Version 1.
    #[allow(missing_docs, clippy::all, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("pluginregistration");
    }
}

/// The encoded `FileDescriptorSet` of all .proto files, with their imports.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Stands for a secret in Debug output: tells how many keys there are and nothing of them.
struct Redacted(usize);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            1 => f.write_str("<redacted: 1 key>"),
            keys => write!(f, "<redacted: {keys} keys>"),
        }
    }
}
