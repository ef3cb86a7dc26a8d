//! `scripts/run-per-core`: one process a core, on one port.
