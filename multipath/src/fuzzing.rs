//! Ways for the fuzz targets to the parsers that are private to their modules. Only there when everything is built with `--cfg fuzzing`.

/// A message of the kernel's netlink multicast groups.
pub fn kernel_event(message: &[u8]) {
    crate::engine::fuzz_kernel_event(message);
}

/// What a socket of NETLINK_SOCK_DIAG gave.
pub fn inet_diag(answer: &[u8]) {
    crate::host::kernel::fuzz_inet_diag(answer);
}
