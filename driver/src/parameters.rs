//! The parameters of a StorageClass: a closed set, checked before anything else happens.
