//! The client of the gateway: TLS, password, deadlines, one connection per gateway. It keeps no volume state.
