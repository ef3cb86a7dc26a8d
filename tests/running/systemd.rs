//! `scripts/systemd`: the units as systemd reads them, and the server as a service of systemd.
