//! Hosts, routes and patterns, matched exactly as Mongrel2 does.
