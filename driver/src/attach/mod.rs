//! Attaching: brings the paths of a LUN to this host and takes them away. It never builds a map.
