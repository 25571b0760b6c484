//! Reads a configuration mapping key by key and collects every problem with its place.
