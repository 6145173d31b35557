//! deploycore-p2p.
