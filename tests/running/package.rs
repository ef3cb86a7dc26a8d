//! `scripts/package`: what is in the package, and its way onto a machine and off it.
