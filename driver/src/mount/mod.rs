//! Mounts and file systems: mount points, formatting of what is blank, checks. It never chooses a device.
