//! Key pairs, pins and the rustls configurations built from them.
