//! Problems found in a configuration, each with its place.
